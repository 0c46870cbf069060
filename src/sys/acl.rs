//! Who else may enter a directory: a POSIX access list, which its owner may set without any capability. Changing the owner was
//! turned down: it needs `CAP_CHOWN`, and a daemon without `CAP_DAC_OVERRIDE` would lock itself out.

use std::io;
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};

/// The attribute that holds the list, and the version of its layout (`linux/posix_acl_xattr.h`).
const NAME: &str = "system.posix_acl_access";
const VERSION: u32 = 2;

// Kinds of entries, in the order the kernel wants them.
const OWNER: u16 = 0x01;
const USER: u16 = 0x02;
const OWNING_GROUP: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHERS: u16 = 0x20;

/// The id of entries that name nobody.
const NOBODY: u32 = u32::MAX;

const ALL: u16 = 7;
const ENTER_AND_LIST: u16 = 5;

/// Lets the owner do everything, these users and groups enter and list, and nobody else anything.
///
/// # Errors
/// Of the system; `EOPNOTSUPP` where the file system has no access lists.
pub fn admit_only(directory: &Path, users: &[u32], groups: &[u32]) -> io::Result<()> {
    let (mut users, mut groups) = (users.to_vec(), groups.to_vec());
    for ids in [&mut users, &mut groups] {
        ids.sort_unstable();
        ids.dedup();
    }
    let entries = std::iter::once((OWNER, ALL, NOBODY))
        .chain(users.iter().map(|user| (USER, ENTER_AND_LIST, *user)))
        .chain(std::iter::once((OWNING_GROUP, 0, NOBODY)))
        .chain(groups.iter().map(|group| (GROUP, ENTER_AND_LIST, *group)))
        .chain([(MASK, ENTER_AND_LIST, NOBODY), (OTHERS, 0, NOBODY)]);
    let mut list = VERSION.to_le_bytes().to_vec();
    for (kind, permissions, id) in entries {
        list.extend(kind.to_le_bytes());
        list.extend(permissions.to_le_bytes());
        list.extend(id.to_le_bytes());
    }
    Ok(setxattr(directory, NAME, &list, XattrFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_list_shows_in_the_mode_and_replaces_the_last() {
        let directory = tempfile::tempdir().unwrap();
        match admit_only(directory.path(), &[1001, 1000, 1001], &[2000]) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return,
            outcome => outcome.unwrap(),
        }
        let mode = || std::fs::metadata(directory.path()).unwrap().permissions().mode() & 0o777;
        // The group bits of a file with a list are its mask.
        assert_eq!(mode(), 0o750);
        admit_only(directory.path(), &[], &[]).unwrap();
        assert_eq!(mode(), 0o750);
        let mut list = vec![0; 256];
        let length = rustix::fs::getxattr(directory.path(), NAME, &mut list).unwrap();
        assert_eq!(length, 4 + 4 * 8, "owner, group, mask, others");
    }
}
