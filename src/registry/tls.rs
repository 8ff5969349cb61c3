//! TLS to registries: whom it trusts, and how connections get it.
//!
//! The system's authorities count, and those that are kept for a host. A certificate that is its own authority, as many
//! registries of one's own have it, is trusted if it is itself among those; the library would refuse it for being used
//! as both.

use std::io::{Read as _, Write as _};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    StreamOwned,
};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout, Transport,
    TransportAdapter,
};

use crate::error::{Context as _, Kind, Result};

/// Authorities, and what we show of ourselves.
#[derive(Debug, Default)]
pub struct Trust {
    /// Beyond the system's.
    pub authorities: Vec<CertificateDer<'static>>,
    /// Our certificate with those above it, and its key.
    pub own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    /// Accept whatever is shown.
    pub insecure: bool,
}

/// Gives connections TLS where their address says so.
#[derive(Debug)]
pub struct Tls(Arc<ClientConfig>);

impl Tls {
    /// With this trust.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if our own certificate and its key do not fit.
    pub fn new(trust: Trust) -> Result<Self> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone());
        let builder = builder
            .with_safe_default_protocol_versions()
            .context(|| "cannot set up TLS".into())?;
        let known = if trust.insecure {
            None
        } else {
            Some(Known::new(trust.authorities, provider.clone())?)
        };
        let verifier = Arc::new(Verifier { provider, known });
        let builder = builder
            .dangerous()
            .with_custom_certificate_verifier(verifier);
        let config = match trust.own {
            None => builder.with_no_client_auth(),
            Some((chain, key)) => {
                let config = builder.with_client_auth_cert(chain, key);
                config.kind(Kind::Invalid, || "our certificate".into())?
            }
        };
        Ok(Self(Arc::new(config)))
    }
}

impl<In: Transport> Connector<In> for Tls {
    type Out = Either<In, Session>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> std::result::Result<Option<Self::Out>, ureq::Error> {
        let Some(transport) = chained else {
            return Ok(None);
        };
        if !details.needs_tls() || transport.is_tls() {
            return Ok(Some(Either::A(transport)));
        }
        let host = details.uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| ureq::Error::BadUri(host.to_owned()))?;
        let broken = |error: rustls::Error| ureq::Error::Io(std::io::Error::other(error));
        let mut conn = ClientConnection::new(self.0.clone(), name).map_err(broken)?;
        let mut sock = TransportAdapter::new(transport.boxed(), details.current_time.clone());
        sock.set_timeout(details.timeout);
        conn.complete_io(&mut sock)?;
        Ok(Some(Either::B(Session {
            buffers: LazyBuffers::new(
                details.config.input_buffer_size(),
                details.config.output_buffer_size(),
            ),
            stream: StreamOwned { conn, sock },
        })))
    }
}

/// A connection with TLS.
pub struct Session {
    buffers: LazyBuffers,
    stream: StreamOwned<ClientConnection, TransportAdapter>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").finish_non_exhaustive()
    }
}

impl Transport for Session {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(
        &mut self,
        amount: usize,
        timeout: NextTimeout,
    ) -> std::result::Result<(), ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        self.stream.write_all(&self.buffers.output()[..amount])?;
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> std::result::Result<bool, ureq::Error> {
        self.stream.get_mut().set_timeout(timeout);
        let read = self.stream.read(self.buffers.input_append_buf())?;
        self.buffers.input_appended(read);
        Ok(read > 0)
    }

    fn is_open(&mut self) -> bool {
        self.stream.get_mut().get_mut().is_open()
    }

    fn is_tls(&self) -> bool {
        true
    }
}

/// Whether an error is that a certificate was not trusted.
pub fn is_distrust(error: &std::io::Error) -> bool {
    let cause = error.get_ref();
    let cause = cause.and_then(|cause| cause.downcast_ref::<rustls::Error>());
    matches!(
        cause,
        Some(
            rustls::Error::InvalidCertificate(_)
                | rustls::Error::InvalidMessage(_)
                | rustls::Error::AlertReceived(_)
        )
    )
}

/// Trusts those who are known; or, where nobody need be, whoever has the key of the certificate that they show.
#[derive(Debug)]
struct Verifier {
    provider: Arc<CryptoProvider>,
    known: Option<Known>,
}

/// The system's authorities and others.
#[derive(Debug)]
struct Known {
    all: Vec<CertificateDer<'static>>,
    chains: Arc<WebPkiServerVerifier>,
}

impl Known {
    fn new(own: Vec<CertificateDer<'static>>, provider: Arc<CryptoProvider>) -> Result<Self> {
        let found = rustls_native_certs::load_native_certs();
        for error in &found.errors {
            tracing::debug!(%error, "a certificate of the system's cannot be read");
        }
        let all: Vec<CertificateDer<'static>> = found.certs.into_iter().chain(own).collect();
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(all.iter().cloned());
        let chains = WebPkiServerVerifier::builder_with_provider(roots.into(), provider).build();
        let chains = chains.kind(Kind::Invalid, || {
            "no certificate of an authority is known".into()
        })?;
        Ok(Self { all, chains })
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, rustls::Error> {
        let Some(known) = &self.known else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified = known
            .chains
            .verify_server_cert(end, between, name, ocsp, now);
        match verified {
            // Its dates were looked at before that.
            Err(rustls::Error::InvalidCertificate(rustls::CertificateError::Other(why)))
                if why.to_string().contains("CaUsedAsEndEntity") && known.all.contains(end) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
