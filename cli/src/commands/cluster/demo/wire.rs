//! The client's side of the two services: PostgreSQL's protocol (version 3, its messages as in the chapter
//! "Message Formats" of its documentation), and the demonstration's own.
//!
//! A record counts as acknowledged when the service has said that it is durable: `CommandComplete` *and*
//! `ReadyForQuery` there, `ok` here.

use std::collections::BTreeSet;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A machine that is there answers within.
const CONNECT_PATIENCE: Duration = Duration::from_millis(300);
/// An answer that takes longer is given up, and the connection with it.
pub const ANSWER_PATIENCE: Duration = Duration::from_secs(1);
/// No message that we ask for is longer, in bytes.
const LONGEST: usize = 1 << 20;

/// Which protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// PostgreSQL's.
    Postgres,
    /// `append NUMBER`, `list`.
    Records,
}

/// A connection to the service.
#[derive(Debug)]
pub struct Session {
    protocol: Protocol,
    stream: BufReader<TcpStream>,
}

fn wrong(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

impl Session {
    /// Connects, and makes the place for records where there is none.
    ///
    /// # Errors
    /// Nobody answers, or not as a service does.
    pub fn connect(protocol: Protocol, to: SocketAddr, patience: Duration) -> io::Result<Self> {
        let stream = TcpStream::connect_timeout(&to, CONNECT_PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut session = Self {
            protocol,
            stream: BufReader::new(stream),
        };
        if protocol == Protocol::Postgres {
            session.log_in()?;
            session.query("CREATE TABLE IF NOT EXISTS records (id bigint PRIMARY KEY)")?;
        }
        Ok(session)
    }

    /// Stores a record; it is durable when this returns.
    ///
    /// # Errors
    /// It may be stored, or not: nobody knows.
    pub fn append(&mut self, number: u64) -> io::Result<()> {
        match self.protocol {
            Protocol::Postgres => self
                .query(&format!("INSERT INTO records VALUES ({number})"))
                .map(drop),
            Protocol::Records => {
                self.say(&format!("append {number}\n"))?;
                match self.line()? {
                    line if line == format!("ok {number}") => Ok(()),
                    other => Err(wrong(other)),
                }
            }
        }
    }

    /// All records that are stored.
    ///
    /// # Errors
    /// The service does not answer.
    pub fn list(&mut self) -> io::Result<BTreeSet<u64>> {
        let number = |text: &str| {
            text.parse()
                .map_err(|_| wrong(format!("{text:?}: no record")))
        };
        match self.protocol {
            Protocol::Postgres => {
                let rows = self.query("SELECT id FROM records")?;
                rows.iter().map(|row| number(row)).collect()
            }
            Protocol::Records => {
                self.say("list\n")?;
                let mut all = BTreeSet::new();
                loop {
                    match self.line()?.as_str() {
                        "end" => return Ok(all),
                        line => all.insert(number(line)?),
                    };
                }
            }
        }
    }

    fn say(&mut self, line: &str) -> io::Result<()> {
        self.stream.get_mut().write_all(line.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        match line.strip_suffix('\n') {
            Some(line) => Ok(line.to_owned()),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// `StartupMessage`, and everything up to the first `ReadyForQuery`.
    fn log_in(&mut self) -> io::Result<()> {
        const VERSION: i32 = 3 << 16;
        let words = b"user\0postgres\0database\0postgres\0\0";
        let mut message = Vec::new();
        let length = i32::try_from(words.len() + 8).unwrap_or(i32::MAX);
        message.extend(length.to_be_bytes());
        message.extend(VERSION.to_be_bytes());
        message.extend(words);
        self.stream.get_mut().write_all(&message)?;
        self.until_ready().map(drop)
    }

    /// One statement; the first column of what it gives.
    fn query(&mut self, statement: &str) -> io::Result<Vec<String>> {
        let mut message = vec![b'Q'];
        let length = i32::try_from(statement.len() + 5).unwrap_or(i32::MAX);
        message.extend(length.to_be_bytes());
        message.extend(statement.as_bytes());
        message.push(0);
        self.stream.get_mut().write_all(&message)?;
        self.until_ready()
    }

    fn until_ready(&mut self) -> io::Result<Vec<String>> {
        let mut rows = Vec::new();
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let [kind, length @ ..] = head;
            let length = usize::try_from(i32::from_be_bytes(length)).ok();
            let length = length.and_then(|length| length.checked_sub(4));
            let length = length.filter(|length| *length <= LONGEST);
            let mut body = vec![0; length.ok_or_else(|| wrong("a message of a wrong length"))?];
            self.stream.read_exact(&mut body)?;
            match kind {
                b'Z' => return Ok(rows),
                b'E' => return Err(wrong(String::from_utf8_lossy(&body).replace('\0', " "))),
                // Authentication: only "ok" needs nothing of us.
                b'R' if body != [0; 4] => return Err(wrong("the database wants a password")),
                b'D' => {
                    rows.push(first_column(&body).ok_or_else(|| wrong("a row without a value"))?)
                }
                _ => {}
            }
        }
    }
}

/// The first value of a `DataRow`.
fn first_column(body: &[u8]) -> Option<String> {
    let length = i32::from_be_bytes(body.get(2..6)?.try_into().ok()?);
    let end = usize::try_from(length).ok()?.checked_add(6)?;
    String::from_utf8(body.get(6..end)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread::{self, JoinHandle};

    use super::*;

    #[test]
    fn a_row_gives_its_first_value_and_a_short_one_none() {
        assert_eq!(first_column(b"\0\x01\0\0\0\x0242"), Some("42".to_owned()));
        assert_eq!(first_column(b"\0\x01\0\0\0\x0342"), None);
        assert_eq!(first_column(b"\0\x01\xff\xff\xff\xff"), None);
        assert_eq!(first_column(b""), None);
    }

    /// A server that answers whatever comes with these messages, one after each thing it was sent.
    fn server(answers: Vec<Vec<u8>>) -> (SocketAddr, JoinHandle<Vec<Vec<u8>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let thread = thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("a client");
            let mut asked = Vec::new();
            for answer in answers {
                let mut buffer = vec![0; 4096];
                let count = stream.read(&mut buffer).expect("a question");
                buffer.truncate(count);
                asked.push(buffer);
                stream.write_all(&answer).expect("answered");
            }
            asked
        });
        (address, thread)
    }

    const READY: &[u8] = b"Z\0\0\0\x05I";

    #[test]
    fn a_record_is_acknowledged_when_the_database_is_ready_again() {
        let (address, thread) = server(vec![
            [&b"R\0\0\0\x08\0\0\0\0"[..], READY].concat(),
            [&b"C\0\0\0\x11CREATE TABLE\0"[..], READY].concat(),
            [&b"C\0\0\0\x0fINSERT 0 1\0"[..], READY].concat(),
            [
                &b"D\0\0\0\x0b\0\x01\0\0\0\x017C\0\0\0\x0dSELECT 1\0"[..],
                READY,
            ]
            .concat(),
            b"C\0\0\0\x0fINSERT 0 1\0".to_vec(),
        ]);
        let mut session =
            Session::connect(Protocol::Postgres, address, ANSWER_PATIENCE).expect("connected");
        session.append(7).expect("acknowledged");
        assert_eq!(session.list().expect("listed"), BTreeSet::from([7]));
        // It dies between both messages.
        session.append(8).expect_err("not acknowledged");
        let asked = thread.join().expect("the server");
        assert!(asked[2].ends_with(b"INSERT INTO records VALUES (7)\0"));
    }

    #[test]
    fn an_error_of_the_database_is_an_error() {
        let (address, _thread) = server(vec![b"E\0\0\0\x0cSFATAL\0\0".to_vec()]);
        let error = Session::connect(Protocol::Postgres, address, ANSWER_PATIENCE);
        assert!(error.expect_err("refused").to_string().contains("FATAL"));
    }
}
