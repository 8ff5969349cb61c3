//! Signatures, end to end: signed is accepted, unsigned and wrongly signed are refused.

mod support;

use serde_json::Value;
use support::images;
use support::{Host, Registry, Said as _};

#[test]
fn only_what_the_right_key_signed_is_pulled() {
    let registry = Registry::start();
    let host = Host::boot();
    for name in ["signed", "unsigned", "wrong"] {
        images::plain(8080, name).push(&registry, name);
    }
    for who in ["good", "evil"] {
        let made = host.sh(&format!(
            "mkdir -m 700 /root/{who} && gpg --homedir /root/{who} --batch --quiet --passphrase '' --quick-gen-key {who}@example.org rsa2048 sign never && gpg --homedir /root/{who} --armor --export > /root/{who}.pub"
        ));
        assert_eq!(made.code(), 0, "{}", made.err());
    }
    let address = registry.address().clone();
    // Before: anything goes, and is shown so.
    assert!(
        host.atomic_ok("trust show")
            .contains("insecureAcceptAnything")
    );
    host.ok("mkdir -p /var/lib/sigstore");
    host.atomic_ok(&format!(
        "trust add {address} --pubkeys /root/good.pub --sigstore file:///var/lib/sigstore"
    ));
    let shown = host.atomic_ok("trust show");
    assert!(
        shown.contains(&address) && shown.contains("signedBy") && shown.contains("/root/good.pub"),
        "{shown}"
    );
    let json: Value = serde_json::from_str(&host.atomic_ok("trust show --json")).unwrap();
    assert_eq!(json["rules"][1]["sigstore"], "file:///var/lib/sigstore");

    let sign = |who: &str, name: &str| {
        host.atomic(&format!(
            "sign --sign-by {who}@example.org --gnupghome /root/{who} {}",
            registry.name(name)
        ))
    };
    for (who, name) in [("good", "signed"), ("evil", "wrong")] {
        let output = sign(who, name);
        assert_eq!(output.code(), 0, "{}", output.err());
    }
    host.atomic_ok(&format!("pull {}", registry.name("signed")));
    let info = host.atomic_ok(&format!("images info {address}/signed"));
    assert!(
        info.contains("\nSignature policy: signedBy /root/good.pub\n"),
        "{info}"
    );
    for name in ["unsigned", "wrong"] {
        let refused = host.atomic(&format!("pull {}", registry.name(name)));
        assert_eq!(refused.code(), 1, "{name}");
        assert!(
            refused.err().contains("rejected by the signature policy"),
            "{}",
            refused.err()
        );
    }
    // Signed afterwards it is accepted; by hand into the directory as well.
    let output = host.atomic(&format!(
        "sign --sign-by good@example.org --gnupghome /root/good --directory /var/lib/sigstore {}",
        registry.name("unsigned")
    ));
    assert_eq!(output.code(), 0, "{}", output.err());
    host.atomic_ok(&format!("pull {}", registry.name("unsigned")));

    host.atomic_ok("trust default reject");
    host.atomic_ok(&format!("trust delete {address}"));
    assert_eq!(host.atomic(&format!("trust delete {address}")).code(), 1);
    assert!(!host.atomic_ok("trust show").contains(&address));
    let refused = host.atomic(&format!("pull {}", registry.name("wrong")));
    assert_eq!(refused.code(), 1, "nothing is accepted by default any more");
    // Another file may be named, for this program and skopeo alike.
    let other = host.sh(&format!(
        "echo '{{\"default\": [{{\"type\": \"insecureAcceptAnything\"}}]}}' > /root/policy; TRUST_POLICY=/root/policy atomic-rs pull {}",
        registry.name("wrong")
    ));
    assert_eq!(other.code(), 0, "{}", other.err());
    let refused = host.atomic("trust reset");
    assert_eq!(refused.code(), 2, "it asks first");
    host.atomic_ok("-y trust reset");
    host.atomic_ok(&format!("pull {}", registry.name("wrong")));
    for wrong in [
        "trust add x",
        "trust add x --pubkeys /no/such/key",
        "trust add x --type reject --sigstore nonsense",
    ] {
        assert_ne!(host.atomic(wrong).code(), 0, "{wrong}");
    }
}
