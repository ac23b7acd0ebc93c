//! Who a client says it is: PLAIN (RFC 4616), AMQPLAIN (a field table without its size), EXTERNAL and ANONYMOUS.

use crate::Settings;
use crate::error::{Code, Refusal};
use crate::field_table::entries;
use crate::reader::Reader;
use broker::Request;
use protocol::Peer;

/// The mechanisms on offer to this peer, as connection.start lists them.
pub fn offered(settings: &Settings, peer: &Peer) -> String {
    let mut names = Vec::new();
    names.extend(settings.plain.then_some("PLAIN"));
    names.extend(settings.amqplain.then_some("AMQPLAIN"));
    names.extend((settings.external && peer.certificate_name.is_some()).then_some("EXTERNAL"));
    names.extend(settings.anonymous_user.is_some().then_some("ANONYMOUS"));
    names.join(" ")
}

/// What to ask the broker for this answer of the client.
pub fn request(settings: &Settings, peer: &Peer, mechanism: &str, response: &[u8]) -> Result<Request, Refusal> {
    if !offered(settings, peer).split(' ').any(|name| name == mechanism) {
        return Err(Refusal::new(Code::CommandInvalid, format!("unknown authentication mechanism '{mechanism}'")));
    }
    let invalid = |what: &str| Refusal::new(Code::SyntaxError, what);
    match mechanism {
        "PLAIN" => {
            let (user, password) = plain(response).ok_or_else(|| invalid("response invalid"))?;
            Ok(Request::Authenticate { user: text(user), password: password.into() })
        }
        "AMQPLAIN" => {
            let (user, password) =
                amqplain(response).ok_or_else(|| invalid("AMQPLAIN auth info is missing LOGIN or PASSWORD field"))?;
            Ok(Request::Authenticate { user: text(user), password: password.into() })
        }
        "EXTERNAL" => Ok(Request::AuthenticateAs { user: peer.certificate_name.as_deref().unwrap_or_default().into() }),
        _ => Ok(Request::AuthenticateAs { user: settings.anonymous_user.as_deref().unwrap_or_default().into() }),
    }
}

fn text(bytes: &[u8]) -> Box<str> {
    String::from_utf8_lossy(bytes).into()
}

/// NUL, user, NUL, password.
fn plain(response: &[u8]) -> Option<(&[u8], &[u8])> {
    let rest = response.strip_prefix(&[0])?;
    let (user, password) = rest.split_at_checked(rest.iter().position(|&byte| byte == 0)?)?;
    let password = password.strip_prefix(&[0])?;
    (!password.contains(&0)).then_some((user, password))
}

/// Entries LOGIN and PASSWORD, both long strings. Most clients leave the size of the table away.
fn amqplain(response: &[u8]) -> Option<(&[u8], &[u8])> {
    fn both(table: &[u8]) -> Option<(&[u8], &[u8])> {
        let named = |name: &[u8]| {
            let mut entries = entries(table).map_while(Result::ok);
            entries.find(|entry| entry.name == name && matches!(entry.tag, b'S' | b'x')).map(|entry| entry.value)
        };
        Some((named(b"LOGIN")?, named(b"PASSWORD")?))
    }
    both(response).or_else(|| both(Reader::new(response).long().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_is_user_and_password_behind_a_nul_each() {
        assert_eq!(plain(b"\0guest\0secret"), Some((&b"guest"[..], &b"secret"[..])));
        assert_eq!(plain(b"\0guest\0"), Some((&b"guest"[..], &b""[..])));
        for bad in [&b""[..], b"guest", b"\0guest", b"who\0guest\0secret", b"\0guest\0secret\0"] {
            assert_eq!(plain(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn amqplain_is_a_table_with_or_without_its_size() {
        let inside = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x06secret";
        let expected = Some((&b"guest"[..], &b"secret"[..]));
        assert_eq!(amqplain(inside), expected);
        let mut sized = (inside.len() as u32).to_be_bytes().to_vec();
        sized.extend_from_slice(inside);
        assert_eq!(amqplain(&sized), expected);
        assert_eq!(amqplain(&inside[..20]), None);
    }
}
