//! The URL of a webhook: `http://` or `https://`, a host, a port or none, a path.

/// A URL, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    /// `https`
    pub tls: bool,
    /// The name or address, without brackets.
    pub host: String,
    /// 80 and 443 where none is written.
    pub port: u16,
    /// With its query: begins with `/`.
    pub path: String,
}

impl Url {
    /// Takes it apart.
    ///
    /// # Errors
    /// What is wrong with it; the path is not told, since it may be a secret.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text
            .split_once("://")
            .ok_or("the URL has no http:// or https://")?;
        let tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err(format!("{scheme}:// is neither http:// nor https://")),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        if authority.contains('@') {
            return Err("the URL has a user in it, which is not spoken here".to_owned());
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(rest) => {
                let (host, port) = rest.split_once(']').ok_or("the URL's [ has no ]")?;
                (host, port.strip_prefix(':'))
            }
            None => match authority.rsplit_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| format!("`{port}` is no port"))?,
            None if tls => 443,
            None => 80,
        };
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') {
            path.to_owned()
        } else {
            format!("/{path}")
        };
        // They would end the request's line, or add another.
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if host.is_empty() || !plain(host) || !plain(&path) {
            return Err(
                "the URL's host is missing, or it has blanks or other signs that must be escaped"
                    .to_owned(),
            );
        }
        Ok(Self {
            tls,
            host: host.to_owned(),
            port,
            path,
        })
    }

    /// As the `Host` header has it.
    pub fn authority(&self) -> String {
        let host = if self.host.contains(':') {
            format!("[{}]", self.host)
        } else {
            self.host.clone()
        };
        match (self.tls, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        let url = Url::parse("https://chat.example.org/hooks/x?y=1#z").unwrap();
        assert_eq!(
            (url.tls, url.port, url.path.as_str()),
            (true, 443, "/hooks/x?y=1")
        );
        assert_eq!(url.authority(), "chat.example.org");
        let url = Url::parse("http://[::1]:8080").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str()),
            ("::1", 8080, "/")
        );
        assert_eq!(url.authority(), "[::1]:8080");
        assert_eq!(Url::parse("http://h?a").unwrap().path, "/?a");
        for bad in [
            "h/x",
            "ftp://h",
            "http://",
            "http://u:p@h/",
            "http://h:99999/",
            "http://h/a b",
            "http://h/\r\nX: y",
            "http://[::1/",
        ] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
    }
}
