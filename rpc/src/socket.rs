//! Making the socket: never reachable by others, never taken from a daemon that lives.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why the socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another daemon answers there.
    #[error("another daemon answers at {}. Remedy: stop it, or choose another socket with -r", .0.display())]
    InUse(PathBuf),
    /// Something that is not a socket is there.
    #[error("{} exists and is not a socket. Remedy: remove it, or choose another socket with -r", .0.display())]
    NotASocket(PathBuf),
    /// The path does not fit in a socket address.
    #[error("the socket path {} is too long. Remedy: choose one of at most 85 bytes with -r", .0.display())]
    TooLong(PathBuf),
    /// The host system refused.
    #[error("cannot make the socket {}: {error}", path.display())]
    System {
        /// Where.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
}

/// A listening socket of mode 0600; removed when dropped.
#[derive(Debug)]
pub struct BoundSocket {
    listener: UnixListener,
    path: PathBuf,
    lock_path: PathBuf,
    owner: u32,
    _lock: File,
}

impl BoundSocket {
    /// Listens at `path`. The socket is made in a directory of mode 0700, gets mode 0600 there and is then moved to
    /// its place, so that at no moment another user can connect. A lock file beside it keeps two daemons apart; a
    /// socket that nobody answers at is replaced.
    ///
    /// # Errors
    /// [`BindError`].
    pub fn bind(path: &Path) -> Result<BoundSocket, BindError> {
        let system = |error| BindError::System { path: path.to_owned(), error };
        // sun_path has 108 bytes; the private directory's name takes some.
        if path.as_os_str().len() > 85 {
            return Err(BindError::TooLong(path.to_owned()));
        }
        let lock_path = lock_path_of(path);
        let lock = take_lock(path, &lock_path)?;
        match fs::symlink_metadata(path) {
            Ok(metadata) if !metadata.file_type().is_socket() => {
                return Err(BindError::NotASocket(path.to_owned()));
            }
            Ok(_) if UnixStream::connect(path).is_ok() => return Err(BindError::InUse(path.to_owned())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(system(error)),
        }
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let private = parent.join(format!(".pollux-{}", std::process::id()));
        let _ = fs::remove_dir_all(&private);
        fs::DirBuilder::new().mode(0o700).create(&private).map_err(system)?;
        let made = (|| {
            let temporary = private.join("s");
            let listener = UnixListener::bind(&temporary)?;
            fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
            let owner = fs::symlink_metadata(&temporary)?.uid();
            fs::rename(&temporary, path)?;
            Ok((listener, owner))
        })();
        let _ = fs::remove_dir_all(&private);
        let (listener, owner) = made.map_err(system)?;
        Ok(BoundSocket { listener, path: path.to_owned(), lock_path, owner, _lock: lock })
    }

    /// The listener.
    #[must_use]
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// May a peer of this user id call? This process's own user and root may.
    #[must_use]
    pub fn admits(&self, user: u32) -> bool {
        user == 0 || user == self.owner
    }
}

impl Drop for BoundSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.lock_path);
    }
}

fn lock_path_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    PathBuf::from(name)
}

fn take_lock(path: &Path, lock_path: &Path) -> Result<File, BindError> {
    let system = |error| BindError::System { path: lock_path.to_owned(), error };
    // A link planted by someone else must not be followed in a shared directory.
    if fs::symlink_metadata(lock_path).is_ok_and(|metadata| !metadata.is_file()) {
        return Err(system(io::Error::other("the lock file is not a plain file")));
    }
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock_path)
        .map_err(system)?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(fs::TryLockError::WouldBlock) => Err(BindError::InUse(path.to_owned())),
        Err(fs::TryLockError::Error(error)) => Err(system(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("pollux-rpc-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn mode_is_0600_and_it_goes_when_dropped() {
        let place = directory("mode");
        let path = place.join("sock");
        let socket = BoundSocket::bind(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        UnixStream::connect(&path).unwrap();
        assert!(socket.admits(0) && socket.admits(socket.owner) && !socket.admits(socket.owner + 1));
        drop(socket);
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        fs::remove_dir_all(place).unwrap();
    }

    #[test]
    fn a_living_daemon_is_not_replaced_and_a_dead_one_is() {
        let place = directory("stale");
        let path = place.join("sock");
        let first = BoundSocket::bind(&path).unwrap();
        assert!(matches!(BoundSocket::bind(&path), Err(BindError::InUse(_))));
        drop(first);
        // Nobody holds the lock, but somebody answers.
        let foreign = UnixListener::bind(&path).unwrap();
        assert!(matches!(BoundSocket::bind(&path), Err(BindError::InUse(_))));
        // Nobody answers any more, and the file stays: stale.
        drop(foreign);
        assert!(path.exists());
        drop(BoundSocket::bind(&path).unwrap());
        fs::write(&path, "text").unwrap();
        assert!(matches!(BoundSocket::bind(&path), Err(BindError::NotASocket(_))));
        assert!(matches!(BoundSocket::bind(Path::new(&"x".repeat(200))), Err(BindError::TooLong(_))));
        fs::remove_dir_all(place).unwrap();
    }
}
