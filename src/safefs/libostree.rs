//! libostree, loaded when a repository is opened. It is here for the sake of `unsafe`.
//!
//! With all that it needs it is sixty libraries, which take longer to load than a list of containers, a
//! completion or the start of a rootless container takes in all. So the program is not linked to it: for
//! each function that the `ostree` crate calls there is one of the same name here, which jumps to where the
//! real one is. One that is missing below is no error: the linker finds it in libostree then, and the
//! program is linked to that like any other (a test notices).

use std::sync::OnceLock;

/// Load it, if it is not loaded yet. It stays.
///
/// # Errors
/// What the loader says.
pub fn load() -> Result<(), String> {
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    LOADED.get_or_init(jumps::load).clone()
}

#[cfg(not(target_arch = "x86_64"))]
mod jumps {
    /// The program is linked to it.
    pub fn load() -> Result<(), String> {
        Ok(())
    }
}

#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code)]
mod jumps {
    use std::arch::global_asm;
    use std::ffi::{CStr, c_void};
    use std::sync::atomic::{AtomicPtr, Ordering};

    const LIBRARY: &CStr = c"libostree-1.so.1";

    /// A function: its name, and where its address goes.
    type Function = (&'static CStr, &'static AtomicPtr<c_void>);

    pub fn load() -> Result<(), String> {
        // SAFETY: its initializers run, as they would have at the start of the program.
        let library = unsafe { libc::dlopen(LIBRARY.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        if library.is_null() {
            return Err(why());
        }
        for (name, address) in FUNCTIONS {
            // SAFETY: the library is open and is never closed; the name is a C string.
            let found = unsafe { libc::dlsym(library, name.as_ptr()) };
            if found.is_null() {
                return Err(why());
            }
            address.store(found, Ordering::Release);
        }
        Ok(())
    }

    /// What the loader says of this thread's last call.
    fn why() -> String {
        // SAFETY: the text, if there is one, ends with a NUL and is this thread's until the next call.
        let said = unsafe {
            let said = libc::dlerror();
            (!said.is_null()).then(|| CStr::from_ptr(said).to_string_lossy().into_owned())
        };
        said.unwrap_or_else(|| "the loader does not say why".into())
    }

    /// What each address is before.
    extern "C" fn not_loaded() {
        eprintln!("libostree is used before it is loaded");
        std::process::abort();
    }

    macro_rules! functions {
        ($($name:ident)*) => {
            $(mod $name {
                use super::{AtomicPtr, c_void, not_loaded};
                pub static ADDRESS: AtomicPtr<c_void> = AtomicPtr::new(not_loaded as *mut c_void);
            })*
            // SAFETY: a jump changes neither arguments nor stack, so that the function is called as by its
            // caller. The name is hidden: libostree goes on calling its own functions.
            $(global_asm!(
                ".pushsection .text",
                concat!(".globl ", stringify!($name)),
                concat!(".hidden ", stringify!($name)),
                concat!(".type ", stringify!($name), ",@function"),
                concat!(stringify!($name), ":"),
                "jmp *{address}(%rip)",
                concat!(".size ", stringify!($name), ", . - ", stringify!($name)),
                ".popsection",
                address = sym $name::ADDRESS,
                options(att_syntax)
            );)*
            const FUNCTIONS: &[Function] = &[$((c_str(concat!(stringify!($name), "\0")), &$name::ADDRESS)),*];
        };
    }

    const fn c_str(name: &'static str) -> &'static CStr {
        match CStr::from_bytes_with_nul(name.as_bytes()) {
            Ok(name) => name,
            // Only ever said by the compiler: the names are constants.
            Err(_) => panic!("not a name"),
        }
    }

    functions! {
        ostree_checksum_file_from_input
        ostree_commit_get_timestamp
        ostree_content_writer_finish
        ostree_content_writer_get_type
        ostree_object_name_deserialize
        ostree_repo_abort_transaction
        ostree_repo_checkout_at
        ostree_repo_commit_transaction
        ostree_repo_copy_config
        ostree_repo_create
        ostree_repo_delete_object
        ostree_repo_devino_cache_unref
        ostree_repo_fsck_object
        ostree_repo_get_config
        ostree_repo_get_disable_fsync
        ostree_repo_get_mode
        ostree_repo_get_type
        ostree_repo_has_object
        ostree_repo_list_commit_objects_starting_with
        ostree_repo_list_refs
        ostree_repo_load_commit
        ostree_repo_load_file
        ostree_repo_load_variant
        ostree_repo_mark_commit_partial
        ostree_repo_new
        ostree_repo_open
        ostree_repo_prepare_transaction
        ostree_repo_prune
        ostree_repo_resolve_rev
        ostree_repo_set_disable_fsync
        ostree_repo_set_ref_immediate
        ostree_repo_transaction_set_ref
        ostree_repo_transaction_stats_get_type
        ostree_repo_write_config
        ostree_repo_write_metadata
        ostree_repo_write_regfile
        ostree_repo_write_regfile_inline
        ostree_repo_write_symlink
    }
}
