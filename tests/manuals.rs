//! The manual pages in `man/` are those of the command line as it is.

use std::collections::BTreeMap;
use std::path::Path;

fn pages() -> BTreeMap<String, Vec<u8>> {
    let mut pages = BTreeMap::new();
    let mut command = atomic_rs::cli::definition().version(atomic_rs::VERSION);
    command.build();
    add(&mut pages, &command, "atomic-rs");
    pages
}

fn add(pages: &mut BTreeMap<String, Vec<u8>>, command: &clap::Command, name: &str) {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone())
        .title(name)
        .render(&mut page)
        .unwrap();
    pages.insert(format!("{name}.1"), page);
    for verb in command
        .get_subcommands()
        .filter(|verb| !verb.is_hide_set() && !is_claps_own(verb))
    {
        add(pages, verb, &format!("{name}-{}", verb.get_name()));
    }
}

/// "help", where it is not a verb of ours.
fn is_claps_own(verb: &clap::Command) -> bool {
    verb.get_name() == "help" && verb.get_positionals().all(|arg| arg.get_id() != "image")
}

#[test]
fn the_manual_pages_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
    let pages = pages();
    if std::env::var_os("ATOMIC_RS_BLESS").is_some() {
        std::fs::create_dir_all(&directory).unwrap();
        for (name, page) in &pages {
            std::fs::write(directory.join(name), page).unwrap();
        }
    }
    for (name, page) in &pages {
        let written = std::fs::read(directory.join(name)).unwrap_or_default();
        assert!(
            written == *page,
            "man/{name} is not current: run \"make man\""
        );
    }
    for entry in std::fs::read_dir(&directory).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(
            pages.contains_key(&name),
            "man/{name} is no longer made: delete it"
        );
    }
}
