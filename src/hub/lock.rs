//! The lock of a model's name: one process at a time brings or removes the model.
//! Knows no models.
//!
//! The system holds the lock for the process, and lets go of it however that ends: a file that a killed one has left behind
//! locks nothing. What stands in the file is who holds it, for messages alone.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::Progress;
use super::error::{HubError, io};

/// The longest number of a process, in bytes.
const MAX_HOLDER_BYTES: u64 = 20;

/// Takes the lock that the file `path` is, for as long as what is returned lives; waits for whoever holds it, and says to
/// `progress` who that is. The file stays: two processes that met at a file of which one is deleted would both hold it.
pub(super) fn lock(path: &Path, name: &str, progress: &mut dyn Progress) -> Result<File, HubError> {
    // To open a pipe that nobody reads would take for ever.
    if fs::symlink_metadata(path).is_ok_and(|found| !found.is_file()) {
        let reason = "something that is no file has the lock's name; remove it";
        return Err(io("lock", path)(io::Error::new(io::ErrorKind::InvalidInput, reason)));
    }
    let mut options = OpenOptions::new();
    let mut file =
        options.read(true).write(true).create(true).truncate(false).open(path).map_err(io("create", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            progress.start(&format!("{name}: waiting for {} that is at it", holder(&mut file)), None);
            let locked = file.lock();
            progress.finish();
            locked.map_err(io("lock", path))?;
        }
        Err(TryLockError::Error(error)) => return Err(io("lock", path)(error)),
    }
    if let Err(error) = say_who(&mut file) {
        tracing::debug!(path = %path.display(), %error, "who holds a lock could not be written into it");
    }
    Ok(file)
}

/// Who holds the lock, as far as its file says so.
fn holder(file: &mut File) -> String {
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.take(MAX_HOLDER_BYTES).read_to_string(&mut text));
    match text.trim().parse::<u32>() {
        Ok(process) if read.is_ok() && process == std::process::id() => "another request to this process".to_owned(),
        Ok(process) if read.is_ok() => format!("process {process}"),
        _ => "another process".to_owned(),
    }
}

fn say_who(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Tells the log what is waited for.
pub(super) struct Logged;

impl Progress for Logged {
    fn start(&mut self, what: &str, _total_bytes: Option<u64>) {
        tracing::warn!("{what}");
    }

    fn advance(&mut self, _bytes: u64) {}

    fn finish(&mut self) {}
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Sends on what begins.
    struct Told(mpsc::Sender<String>);

    impl Progress for Told {
        fn start(&mut self, what: &str, _total_bytes: Option<u64>) {
            self.0.send(what.to_owned()).expect("the test listens");
        }

        fn advance(&mut self, _bytes: u64) {}

        fn finish(&mut self) {}
    }

    #[test]
    fn what_a_killed_process_left_holds_nobody_up() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.lock");
        fs::write(&path, "4194304999\n").expect("a file");
        let (told, messages) = mpsc::channel();
        drop(lock(&path, "m", &mut Told(told)).expect("nobody holds it"));
        assert_eq!(messages.try_iter().count(), 0, "nobody is waited for");
        assert_eq!(fs::read_to_string(&path).expect("text"), format!("{}\n", std::process::id()));
    }

    #[test]
    fn who_waits_is_told_for_whom() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.lock");
        for (written, expected) in [
            ("4242\n".to_owned(), "m: waiting for process 4242 that is at it"),
            (std::process::id().to_string(), "m: waiting for another request to this process that is at it"),
            (String::new(), "m: waiting for another process that is at it"),
        ] {
            fs::write(&path, written).expect("a file");
            let held = File::open(&path).expect("a file");
            held.lock().expect("nobody holds it");
            let (told, messages) = mpsc::channel();
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| lock(&path, "m", &mut Told(told)).map(drop));
                assert_eq!(messages.recv().expect("it waits"), expected);
                held.unlock().expect("it is held");
                waiting.join().expect("no panic").expect("it is free");
            });
        }
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("m.lock");
        fs::create_dir(&path).expect("a folder");
        let HubError::Io { source, .. } = lock(&path, "m", &mut ()).expect_err("no file") else { panic!("its place") };
        assert!(source.to_string().ends_with("remove it"), "{source}");
    }
}
