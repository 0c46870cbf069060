//! Starting a process with directories of its own: in a mount namespace where others' views of them are not changed. And waiting
//! for it as process 1 of a container must, which inherits everybody's orphans.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

use rustix::process::Pid;

use super::signals::Mask;

/// Directories that a process will see at other places.
#[derive(Clone, Debug)]
pub struct Mounts {
    pairs: Vec<(CString, CString)>,
    /// After these.
    read_only: Vec<(CString, CString)>,
    /// Identity in a user namespace of its own; without one the caller's privileges must do.
    identity: Option<Identity>,
}

/// Prepared, since after `fork` nothing may be allocated.
#[derive(Clone, Debug)]
struct Identity {
    user: CString,
    group: CString,
}

// === impl Mounts ===

impl Mounts {
    /// Each first path at the second, in their order. `own_user_namespace`: for who may not mount otherwise; the process keeps its
    /// user and group there, and sees those of others as nobody's.
    ///
    /// # Errors
    /// For a path with a NUL.
    pub fn new(pairs: &[(PathBuf, PathBuf)], own_user_namespace: bool) -> io::Result<Self> {
        let pairs = prepared(pairs)?;
        let map = |id: u32| CString::new(format!("{id} {id} 1")).map_err(|_| io::ErrorKind::InvalidInput);
        let identity = if own_user_namespace {
            let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
            Some(Identity { user: map(user)?, group: map(group)? })
        } else {
            None
        };
        Ok(Self { pairs, read_only: Vec::new(), identity })
    }

    /// After the others these, which the process and its children cannot write to, whoever they are: `EROFS`.
    ///
    /// # Errors
    /// For a path with a NUL.
    pub fn and_read_only(mut self, pairs: &[(PathBuf, PathBuf)]) -> io::Result<Self> {
        self.read_only = prepared(pairs)?;
        Ok(self)
    }

    /// Whether they can be made, found out in a process that ends at once.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn probe(&self) -> io::Result<()> {
        // SAFETY: the child makes system calls on prepared memory and ends without running anything of this process's.
        let child = unsafe { libc::fork() };
        match child {
            -1 => Err(io::Error::last_os_error()),
            0 => {
                let code = self.enter().err().map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO));
                // SAFETY: ends the child; no destructor or handler of the parent's runs.
                unsafe { libc::_exit(code.min(255)) }
            }
            child => {
                let mut status = 0;
                loop {
                    // SAFETY: a child of this process that nobody else waits for.
                    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
                    if waited == child {
                        break;
                    }
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
                match (libc::WIFEXITED(status), libc::WEXITSTATUS(status)) {
                    (true, 0) => Ok(()),
                    (true, code) => Err(io::Error::from_raw_os_error(code)),
                    (false, _) => Err(io::ErrorKind::Interrupted.into()),
                }
            }
        }
    }

    /// Makes a namespace and the mounts in it. Between `fork` and `exec`: system calls on prepared memory only.
    fn enter(&self) -> io::Result<()> {
        if self.pairs.is_empty() && self.read_only.is_empty() {
            return Ok(());
        }
        let check = |code: libc::c_int| if code == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        let flags = libc::CLONE_NEWNS | if self.identity.is_some() { libc::CLONE_NEWUSER } else { 0 };
        if self.identity.is_some() {
            // SAFETY: numbers in, a code out. What is not dumpable may not write its own maps; `exec` sets it again in any case.
            check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0) })?;
        }
        // SAFETY: numbers in, a code out; the process has one thread.
        check(unsafe { libc::unshare(flags) })?;
        if let Some(identity) = &self.identity {
            write_whole(c"/proc/self/setgroups", b"deny")?;
            write_whole(c"/proc/self/uid_map", identity.user.as_bytes())?;
            write_whole(c"/proc/self/gid_map", identity.group.as_bytes())?;
        }
        let none = std::ptr::null::<libc::c_char>();
        // What is mounted outside still arrives; what is mounted here stays here.
        // SAFETY: NUL-terminated strings or null where the call takes null.
        check(unsafe { libc::mount(none, c"/".as_ptr(), none, libc::MS_SLAVE | libc::MS_REC, std::ptr::null()) })?;
        for (from, to) in self.pairs.iter().chain(&self.read_only) {
            // SAFETY: as above.
            check(unsafe { libc::mount(from.as_ptr(), to.as_ptr(), none, libc::MS_BIND, std::ptr::null()) })?;
        }
        for (_, to) in &self.read_only {
            let mut facts = std::mem::MaybeUninit::<libc::statvfs>::zeroed();
            // SAFETY: a NUL-terminated path, and a value of the right type that lives for the call; one system call, no allocation.
            check(unsafe { libc::statvfs(to.as_ptr(), facts.as_mut_ptr()) })?;
            // SAFETY: filled in by the call that has just succeeded, and all zeros are a value of it as well.
            let flags = unsafe { facts.assume_init() }.f_flag;
            // In a user namespace what a mount forbids already must be said again; the numbers are the same in both calls. What is not
            // said of access times stays.
            let kept = flags & (libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC);
            let flags = kept | libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY;
            // SAFETY: NUL-terminated strings or null where the call takes null.
            check(unsafe { libc::mount(none, to.as_ptr(), none, flags, std::ptr::null()) })?;
        }
        Ok(())
    }
}

fn prepared(pairs: &[(PathBuf, PathBuf)]) -> io::Result<Vec<(CString, CString)>> {
    let text = |path: &Path| CString::new(path.as_os_str().as_bytes()).map_err(|_| io::ErrorKind::InvalidInput);
    Ok(pairs.iter().map(|(from, to)| Ok((text(from)?, text(to)?))).collect::<Result<_, io::ErrorKind>>()?)
}

/// Those that runtimes give to every container that runs as root: CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP,
/// NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD, AUDIT_WRITE, SETFCAP.
const GIVEN_TO_ALL: u64 = 0xa804_25fb;

/// Whether this process has capabilities that somebody has given to it on purpose, as IPC_LOCK for memory that network cards
/// write to. In a user namespace of its own they would count for nothing.
#[must_use]
pub fn has_been_given_capabilities() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| has_more_than_all(&status))
}

fn has_more_than_all(status: &str) -> bool {
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    effective.is_some_and(|effective| effective & !GIVEN_TO_ALL != 0)
}

fn write_whole(path: &std::ffi::CStr, text: &[u8]) -> io::Result<()> {
    // SAFETY: the path is NUL-terminated, the text lives for the call, the descriptor is closed once.
    unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return Err(io::Error::last_os_error());
        }
        let written = libc::write(file, text.as_ptr().cast(), text.len());
        let error = io::Error::last_os_error();
        libc::close(file);
        if usize::try_from(written) == Ok(text.len()) { Ok(()) } else { Err(error) }
    }
}

/// Starts `command` with `mounts`, with `mask` for its signals, and with `keep` left open in it: a lock that lives as long as it and
/// its children do.
///
/// # Errors
/// What the kernel says; that the program is not there, among others.
pub fn start(
    command: &mut Command,
    mounts: Option<Mounts>,
    mask: Mask,
    keep: Option<BorrowedFd<'_>>,
) -> io::Result<Pid> {
    let kept = keep.map(|file| file.as_raw_fd());
    let prepare = move || {
        if let Some(mounts) = &mounts {
            mounts.enter()?;
        }
        if let Some(file) = kept {
            // SAFETY: numbers in, a code out; the descriptor is open in the parent until it has started the child.
            if unsafe { libc::fcntl(file, libc::F_SETFD, 0) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        mask.install()
    };
    // SAFETY: the closure makes system calls on memory that was prepared before.
    unsafe { command.pre_exec(prepare) };
    let child = command.spawn()?;
    Pid::from_raw(child.id().cast_signed()).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Makes this process the parent of what its children leave behind, as process 1 is: so it can be found and ended.
///
/// # Errors
/// When the kernel refuses.
pub fn adopt_orphans() -> io::Result<()> {
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    Ok(())
}

fn adopts_orphans() -> bool {
    std::process::id() == 1 || rustix::process::child_subreaper().is_ok_and(|is| is.is_some())
}

/// What stems from this process and runs, but for what runs the same program as a child of its own: that is a helper.
#[must_use]
pub fn descendants() -> Vec<Pid> {
    let number = |name: &std::ffi::OsStr| name.to_str()?.parse::<i32>().ok();
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    // After the name, which may have anything in it and ends at the last parenthesis: state and parent.
    let facts = entries.filter_map(|entry| {
        let (pid, text) = (number(&entry.file_name())?, std::fs::read_to_string(entry.path().join("stat")).ok()?);
        let mut words = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let (state, parent) = (words.next()?, words.next()?.parse::<i32>().ok()?);
        Some((pid, parent, !matches!(state, "Z" | "X")))
    });
    let facts: Vec<(i32, i32, bool)> = facts.collect();
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let (own, ours) = (rustix::process::getpid().as_raw_nonzero().get(), program("self"));
    let (mut found, mut above) = (Vec::new(), vec![own]);
    while let Some(parent) = above.pop() {
        for (pid, _, runs) in facts.iter().filter(|(_, of, _)| *of == parent) {
            if parent == own && ours.is_some() && program(&pid.to_string()) == ours {
                continue;
            }
            above.push(*pid);
            found.extend(Pid::from_raw(*pid).filter(|_| *runs));
        }
    }
    found
}

/// Reaps what has ended, whatever it was. For when no child is waited for.
pub fn reap_orphans() {
    // SAFETY: numbers in, a code out; what it was does not matter.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}

/// Waits until a child has ended, without reaping it: its number stays its own.
///
/// # Errors
/// When it is no child.
pub fn wait_for_end(child: Pid) -> io::Result<()> {
    let first = adopts_orphans();
    loop {
        let mut found = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
        let (of, id) =
            if first { (libc::P_ALL, 0) } else { (libc::P_PID, child.as_raw_nonzero().get().cast_unsigned()) };
        // SAFETY: points to a value of the right type that lives for the call.
        let code = unsafe { libc::waitid(of, id, found.as_mut_ptr(), libc::WEXITED | libc::WNOWAIT) };
        if code != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted {
                continue;
            }
            return Err(error);
        }
        // SAFETY: the kernel has filled it in for an ended child.
        let ended = unsafe { found.assume_init().si_pid() };
        if ended == child.as_raw_nonzero().get() {
            return Ok(());
        }
        // An orphan that was inherited, or a helper that nobody waits for.
        // SAFETY: numbers in, a code out; what it was does not matter.
        unsafe { libc::waitpid(ended, std::ptr::null_mut(), libc::WNOHANG) };
    }
}

/// Reaps a child that has ended.
///
/// # Errors
/// When it is no child.
pub fn reap(child: Pid) -> io::Result<ExitStatus> {
    use std::os::unix::process::ExitStatusExt;
    let mut status = 0;
    loop {
        // SAFETY: points to a value of the right type that lives for the call.
        let waited = unsafe { libc::waitpid(child.as_raw_nonzero().get(), &raw mut status, 0) };
        if waited >= 0 {
            return Ok(ExitStatus::from_raw(status));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::signals::Held;

    #[test]
    fn a_child_sees_its_own_directory_and_nobody_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for path in [&from, &to] {
            std::fs::create_dir(path).unwrap();
        }
        std::fs::write(from.join("file"), "x").unwrap();
        let mounts = Mounts::new(&[(from.clone(), to.clone())], false).unwrap();
        let mounts = match mounts.probe() {
            Ok(()) => mounts,
            Err(_) => {
                let own = Mounts::new(&[(from.clone(), to.clone())], true).unwrap();
                // Where neither is allowed there is nothing to see.
                if own.probe().is_err() {
                    return;
                }
                own
            }
        };
        let mask = Held::back().unwrap().before();
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg("test -f \"$0/file\" && echo y > \"$0/new\" && exit 7").arg(&to);
        let child = start(&mut command, Some(mounts), mask, None).unwrap();
        wait_for_end(child).unwrap();
        assert_eq!(reap(child).unwrap().code(), Some(7));
        assert!(from.join("new").exists() && !to.join("new").exists() && !to.join("file").exists());
    }

    #[test]
    fn what_is_shown_read_only_cannot_be_written_to_by_root_either() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for name in ["view/part", "store/part", "to"] {
            std::fs::create_dir_all(at(name)).unwrap();
        }
        std::fs::write(at("store/part/file"), "x").unwrap();
        let (pairs, shown) = ([(at("view"), at("to"))], [(at("store/part"), at("to/part"))]);
        let mounts = |own| Mounts::new(&pairs, own).unwrap().and_read_only(&shown).unwrap();
        let Some(mounts) = [mounts(false), mounts(true)].into_iter().find(|mounts| mounts.probe().is_ok()) else {
            // Where neither is allowed there is nothing to see.
            return;
        };
        let mask = Held::back().unwrap().before();
        let mut command = Command::new("/bin/sh");
        let script =
            "test -f part/file && echo y > new && ! echo y > part/file && ! rm part/file && ! touch part/new && exit 7";
        command.arg("-c").arg(format!("cd \"$0\" && {script}")).arg(at("to")).stderr(std::process::Stdio::null());
        let child = start(&mut command, Some(mounts), mask, None).unwrap();
        wait_for_end(child).unwrap();
        assert_eq!(reap(child).unwrap().code(), Some(7));
        assert!(at("view/new").exists() && std::fs::read(at("store/part/file")).unwrap() == b"x");
        assert_eq!(std::fs::read_dir(at("store/part")).unwrap().count(), 1);
    }

    #[test]
    fn capabilities_beyond_those_of_every_container_are_given_on_purpose() {
        for (capabilities, given) in
            [("0", false), ("00000000a80425fb", false), ("a80465fb", true), ("1ffffffffff", true)]
        {
            assert_eq!(has_more_than_all(&format!("Name:\tx\nCapEff:\t{capabilities}\n")), given, "{capabilities}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_told_before() {
        let none = PathBuf::from("/none/at/all");
        assert!(Mounts::new(&[(none.clone(), none)], false).unwrap().probe().is_err());
        assert!(Mounts::new(&[], false).unwrap().probe().is_ok());
        let mask = Held::back().unwrap().before();
        assert!(start(&mut Command::new("/none/at/all"), None, mask, None).is_err());
    }
}
