//! TLS: certificates from files, read again on request; the handshake; the name in a client's certificate.

use crate::limits;
use crate::session::Socket;
use crate::settings::TlsFiles;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection};
use std::io::{self, Read};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::net::TcpStream;

/// The configuration in use. Sessions keep the one they began with.
pub struct Tls {
    files: TlsFiles,
    current: RwLock<Arc<ServerConfig>>,
}

impl Tls {
    pub fn open(files: TlsFiles) -> Result<Tls, String> {
        let config = load(&files)?;
        Ok(Tls { files, current: RwLock::new(config) })
    }

    /// Reads the files again. Bad ones change nothing.
    pub fn reload(&self) -> Result<(), String> {
        let config = load(&self.files)?;
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    /// Shakes hands within the limit. Answers the session and what the client said right behind.
    pub async fn accept(&self, stream: &TcpStream) -> io::Result<(ServerConnection, Vec<u8>)> {
        let config = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let tls = ServerConnection::new(config).map_err(io::Error::other)?;
        let limit = Duration::from_millis(limits::TLS_HANDSHAKE_MS);
        tokio::time::timeout(limit, shake_hands(stream, tls)).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
    }
}

fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |what: &std::path::Path| {
        let what = what.display().to_string();
        move |error: String| format!("{what}: {error}")
    };
    let chain = certificates(&files.certificate).map_err(wrong(&files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|error| error.to_string()).map_err(wrong(&files.key))?;
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path).map_err(wrong(path))? {
                roots.add(certificate).map_err(|error| error.to_string()).map_err(wrong(path))?;
            }
            // Who shows a certificate must show a good one; who shows none logs in by password.
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| error.to_string())
                .map_err(wrong(path))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let config = builder.with_single_cert(chain, key).map_err(|error| error.to_string()).map_err(wrong(&files.certificate))?;
    Ok(Arc::new(config))
}

fn certificates(path: &std::path::Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|error| error.to_string())?.collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err("no certificate in it".into()),
        Err(error) => Err(error.to_string()),
    }
}

async fn shake_hands(stream: &TcpStream, mut tls: ServerConnection) -> io::Result<(ServerConnection, Vec<u8>)> {
    let mut early = Vec::new();
    loop {
        while tls.wants_write() {
            if would_block(tls.write_tls(&mut Socket(stream)))?.is_none() {
                stream.writable().await?;
            }
        }
        if !tls.is_handshaking() {
            return Ok((tls, early));
        }
        stream.readable().await?;
        match would_block(tls.read_tls(&mut Socket(stream)))? {
            None => continue,
            Some(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Some(_) => {}
        }
        match tls.process_new_packets() {
            Ok(state) => {
                let length = early.len();
                early.resize(length + state.plaintext_bytes_to_read(), 0);
                tls.reader().read_exact(&mut early[length..])?;
            }
            Err(error) => {
                // The alert says why; best effort.
                let _ = tls.write_tls(&mut Socket(stream));
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

fn would_block(result: io::Result<usize>) -> io::Result<Option<usize>> {
    match result {
        Ok(count) => Ok(Some(count)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Common name of the certificate that the client has shown, already verified.
pub fn certificate_name(tls: &ServerConnection) -> Option<String> {
    common_name(tls.peer_certificates()?.first()?)
}

/// The last common name of a certificate's subject (RFC 5280 §4.1): a short walk over DER.
///
/// ```text
/// Certificate ::= { tbs { [0] version?, serial, signature, issuer, validity, subject: { set { { oid, string } } }, … }, … }
/// ```
fn common_name(der: &[u8]) -> Option<String> {
    const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
    let (certificate, _) = element(der, 0x30)?;
    let (mut tbs, _) = element(certificate, 0x30)?;
    if let Some((_, rest)) = element(tbs, 0xa0) {
        tbs = rest;
    }
    for tag in [0x02, 0x30, 0x30, 0x30] {
        tbs = element(tbs, tag)?.1;
    }
    let (mut subject, _) = element(tbs, 0x30)?;
    let mut name = None;
    while let Some((mut set, rest)) = element(subject, 0x31) {
        subject = rest;
        while let Some((attribute, others)) = element(set, 0x30) {
            set = others;
            let (oid, value) = element(attribute, 0x06)?;
            if oid == COMMON_NAME {
                // UTF8String, PrintableString, IA5String, T61String: read as UTF-8 or not at all.
                let (text, _) = [0x0c, 0x13, 0x16, 0x14].iter().find_map(|tag| element(value, *tag))?;
                name = Some(std::str::from_utf8(text).ok()?.to_owned());
            }
        }
    }
    name
}

/// (contents, what follows) of the element at the front, if it has this tag.
fn element(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    if found != tag {
        return None;
    }
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
        0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), rest.get(2..)?),
        0x83 => {
            let [a, b, c] = *rest.first_chunk()?;
            (u32::from_be_bytes([0, a, b, c]) as usize, rest.get(3..)?)
        }
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_says_its_common_name_and_no_cut_of_it_panics() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "Braid");
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "ann");
        let certificate = parameters.self_signed(&key).unwrap();
        let der = certificate.der();
        assert_eq!(common_name(der).as_deref(), Some("ann"));
        for cut in 0..der.len() {
            assert_eq!(common_name(&der[..cut]), None);
        }
    }
}
