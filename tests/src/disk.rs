//! A disk that can be full.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A small file system of a test's own, in memory.
#[derive(Debug)]
pub struct Tmpfs(PathBuf);

impl Tmpfs {
    /// One of so many megabytes; `None` where none can be mounted.
    pub fn mount(megabytes: usize) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("task-retry-disk-{}", crate::new_name()));
        std::fs::create_dir(&path).ok()?;
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={megabytes}m"), "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status();
        if mount.is_ok_and(|status| status.success()) {
            return Some(Self(path));
        }
        let _ = std::fs::remove_dir(&path);
        eprintln!("skipped: no small file system can be mounted here");
        None
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Puts ballast on it, which leaves so many bytes.
    pub fn fill_but(&self, bytes: usize) {
        let ballast = vec![1; self.free().saturating_sub(bytes)];
        self.ballast().write_all(&ballast).expect("there is room");
    }

    /// Puts ballast on it until nothing more can be written.
    pub fn fill(&self) {
        let (mut ballast, part) = (self.ballast(), vec![1; 1 << 20]);
        while ballast.write_all(&part).is_ok() {}
    }

    /// Removes the ballast.
    pub fn clear(&self) {
        std::fs::remove_file(self.0.join("ballast")).expect("there is ballast");
    }

    fn ballast(&self) -> File {
        let path = self.0.join("ballast");
        File::options().create(true).append(true).open(path).expect("a file can be made")
    }

    /// How many bytes are left.
    fn free(&self) -> usize {
        let answer = Command::new("df").args(["-B1", "--output=avail"]).arg(&self.0).output();
        let text = String::from_utf8(answer.expect("df runs").stdout).expect("a number");
        text.lines().last().expect("a line").trim().parse().expect("a number")
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}
