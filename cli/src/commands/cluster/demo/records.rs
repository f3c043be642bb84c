//! `kagami cluster demo-service`: the service that stands in for a database where there is none. It appends
//! numbered records to a file, and answers when they are on the disk.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::exit::{Failure, Outcome};

/// The file of records: a number a line.
#[derive(Debug)]
struct Records {
    file: File,
}

impl Records {
    /// Opens it; what a crash left of a last line is cut off.
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let whole = text
            .iter()
            .rposition(|byte| *byte == b'\n')
            .map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        file.seek(SeekFrom::End(0))?;
        file.sync_all()?;
        // The file's name is to survive, too.
        if let Some(folder) = path.parent() {
            File::open(folder)?.sync_all()?;
        }
        Ok(Self { file })
    }

    fn append(&mut self, number: u64) -> io::Result<()> {
        self.file.write_all(format!("{number}\n").as_bytes())?;
        self.file.sync_data()
    }

    fn list(&mut self) -> io::Result<String> {
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// Serves until it is killed.
///
/// # Errors
/// The file or the address can't be used.
pub fn run(path: &Path, listen: SocketAddr) -> Outcome {
    let failed = |what: String, error: io::Error| {
        Failure::system(format!(
            "not started: {what}: {error}\n  next: name another one"
        ))
    };
    let records = Records::open(path).map_err(|error| failed(path.display().to_string(), error))?;
    let listener = TcpListener::bind(listen).map_err(|error| failed(listen.to_string(), error))?;
    serve(&listener, records).map_err(|error| failed(listen.to_string(), error))
}

fn serve<T>(listener: &TcpListener, records: Records) -> io::Result<T> {
    let records = Arc::new(Mutex::new(records));
    loop {
        let (stream, _) = listener.accept()?;
        let records = Arc::clone(&records);
        // Whoever goes away, or says what is not understood, loses the connection and nothing else.
        thread::Builder::new()
            .name("client".to_owned())
            .spawn(move || answer(&stream, &records))?;
    }
}

fn answer(stream: &TcpStream, records: &Mutex<Records>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut out = stream;
    let mut lines = BufReader::new(stream).take(u64::MAX);
    let mut line = String::new();
    loop {
        line.clear();
        lines.set_limit(64);
        if lines.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut records = records.lock().unwrap_or_else(PoisonError::into_inner);
        let said = match line.trim_end().split_once(' ') {
            Some(("append", number)) => match number.parse() {
                Ok(number) => {
                    records.append(number)?;
                    format!("ok {number}\n")
                }
                Err(_) => format!("{number:?} is no number\n"),
            },
            None if line == "list\n" => format!("{}end\n", records.list()?),
            _ => "say: append NUMBER, or list\n".to_owned(),
        };
        drop(records);
        out.write_all(said.as_bytes())?;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::wire::{ANSWER_PATIENCE, Protocol, Session};
    use super::*;

    #[test]
    fn what_was_acknowledged_is_listed_also_by_the_next_one_and_half_a_line_is_dropped() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("records");
        let begin = || {
            let records = Records::open(&path).expect("opened");
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            let address = listener.local_addr().expect("its address");
            thread::spawn(move || serve::<()>(&listener, records));
            Session::connect(Protocol::Records, address, ANSWER_PATIENCE).expect("connected")
        };
        let mut session = begin();
        for number in [1, 2, 40] {
            session.append(number).expect("appended");
        }
        // A crash in the middle of the next one.
        let mut file = OpenOptions::new().append(true).open(&path).expect("there");
        file.write_all(b"4").expect("written");
        let mut session = begin();
        session.append(5).expect("appended");
        assert_eq!(
            session.list().expect("listed"),
            BTreeSet::from([1, 2, 5, 40])
        );
    }

    #[test]
    fn nonsense_is_refused_and_the_connection_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let records = Records::open(&folder.path().join("records")).expect("opened");
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        thread::spawn(move || serve::<()>(&listener, records));
        let stream = TcpStream::connect(address).expect("connected");
        let mut lines = BufReader::new(&stream).lines();
        for (said, answer) in [
            ("append x\n", "\"x\" is no number"),
            ("what\n", "say: append NUMBER, or list"),
            ("append 3\n", "ok 3"),
            ("list\n", "3"),
        ] {
            (&stream).write_all(said.as_bytes()).expect("said");
            assert_eq!(lines.next().expect("an answer").expect("read"), answer);
        }
    }
}
