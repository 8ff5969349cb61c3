//! The host's NVIDIA driver in containers: its libraries must be those of the kernel's module, so that no image can bring
//! them. They are bound each time something runs, read-only, so that a newer driver is there at once.
//!
//! Source of what belongs to a driver: the file list of NVIDIA's Linux driver, chapter "Installed Components" of its README.

use std::collections::BTreeMap;

use camino::{Utf8Path, Utf8PathBuf};

use crate::command::Child;
use crate::error::{Kind, Result};
use crate::fail;
use crate::runtime::mounts::Volume;
use crate::safefs::{Files, Root};

/// By one of these a directory is known to have the driver's libraries.
const MARKS: [&str; 3] = ["libcuda.so", "libnvidia-cfg.so", "libnvidia-ml.so"];
/// What its libraries' names begin with.
const LIBRARIES: [&str; 12] = [
    "libcuda.so",
    "libcudadebugger.so",
    "libnvidia-",
    "libnvcuvid.so",
    "libnvoptix.so",
    "libEGL_nvidia.so",
    "libGLX_nvidia.so",
    "libGLESv1_CM_nvidia.so",
    "libGLESv2_nvidia.so",
    "libvdpau_nvidia.so",
    "libnvidia.so",
    "libnvsandboxutils.so",
];
const PROGRAMS: [&str; 5] = [
    "nvidia-smi",
    "nvidia-debugdump",
    "nvidia-persistenced",
    "nvidia-cuda-mps-control",
    "nvidia-cuda-mps-server",
];
/// By these the loaders of `OpenCL`, Vulkan and EGL know of it.
const LOADERS: [&str; 6] = [
    "/etc/OpenCL/vendors/nvidia.icd",
    "/etc/vulkan/icd.d/nvidia_icd.json",
    "/etc/vulkan/implicit_layer.d/nvidia_layers.json",
    "/usr/share/vulkan/icd.d/nvidia_icd.json",
    "/usr/share/glvnd/egl_vendor.d/10_nvidia.json",
    "/usr/share/egl/egl_external_platform.d/10_nvidia_wayland.json",
];

/// What the host has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Driver {
    /// Libraries by name, each where it really is.
    libraries: BTreeMap<String, Utf8PathBuf>,
    /// Programs and files, where they are on the host and in the container.
    files: Vec<(Utf8PathBuf, Utf8PathBuf)>,
    devices: Vec<Utf8PathBuf>,
}

impl Driver {
    /// Look for it: where the loader looks, and in `LD_LIBRARY_PATH`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if the host has none.
    pub fn find() -> Result<Self> {
        let libraries = libraries(&directories());
        if libraries.is_empty() {
            fail!(
                Kind::NotFound,
                "host nvidia libraries not found: no {} where the loader looks or in LD_LIBRARY_PATH",
                MARKS[0]
            );
        }
        let path = std::env::var("PATH").unwrap_or_default();
        let programs = PROGRAMS.iter().filter_map(|name| {
            let mut places = path.split(':').map(|place| Utf8Path::new(place).join(name));
            let found = places.find(|place| place.is_file())?;
            Some((found, Utf8Path::new("/usr/bin").join(name)))
        });
        let loaders = LOADERS.iter().map(Utf8PathBuf::from);
        let loaders = loaders.filter(|path| path.is_file());
        let loaders = loaders.map(|path| (path.clone(), path));
        Ok(Self {
            libraries,
            files: programs.chain(loaders).collect(),
            devices: devices(),
        })
    }

    /// Its devices.
    pub fn devices(&self) -> &[Utf8PathBuf] {
        &self.devices
    }

    /// What a container of these files is to see. Where nothing is mounted nothing can be made read-only either; then
    /// it is as the host has it, which is root's.
    pub fn volumes(&self, files: &Utf8Path, read_only: bool) -> Result<Vec<Volume>> {
        let directory = place(&Root::open(files.as_std_path())?);
        let bind = |source: &Utf8Path, destination: Utf8PathBuf| Volume {
            source: source.to_owned(),
            destination: destination.into_string(),
            read_only,
        };
        let libraries = self.libraries.iter();
        let libraries = libraries.map(|(name, at)| bind(at, directory.join(name)));
        let others = self.files.iter();
        let others = others.map(|(from, to)| bind(from, to.clone()));
        Ok(libraries.chain(others).collect())
    }
}

/// The directory of libraries that a container's loader knows.
fn place(files: &Root) -> Utf8PathBuf {
    let multiarch = multiarch();
    let places = [multiarch.as_str(), "/usr/lib64", "/usr/lib"];
    let is_there = |place: &&str| {
        let found = files.stat(place);
        found.is_ok_and(|found| found.is_some_and(|found| found.is_dir))
    };
    let found = places.into_iter().find(is_there);
    found.unwrap_or("/usr/lib").into()
}

/// As Debian has it.
fn multiarch() -> String {
    format!("/usr/lib/{}-linux-gnu", std::env::consts::ARCH)
}

/// Where libraries are.
fn directories() -> Vec<Utf8PathBuf> {
    let named = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let mut out: Vec<Utf8PathBuf> = named
        .split(':')
        .filter(|path| path.starts_with('/'))
        .map(Utf8PathBuf::from)
        .collect();
    // It is where only root has it in PATH.
    let known = Child::new("/sbin/ldconfig").arg("-p").run();
    let known = known.unwrap_or_default();
    let known = String::from_utf8_lossy(&known);
    // `	libcuda.so.1 (libc6,x86-64) => /usr/lib/x86_64-linux-gnu/libcuda.so.1`
    let found = known.lines().filter_map(|line| line.split_once(" => "));
    let found = found.filter_map(|(_, path)| Utf8Path::new(path).parent());
    out.extend(found.map(Utf8Path::to_owned));
    out.extend([
        multiarch().into(),
        "/usr/lib64".into(),
        "/usr/lib/wsl/lib".into(),
    ]);
    let mut seen = std::collections::BTreeSet::new();
    out.retain(|path| seen.insert(path.clone()));
    out
}

/// The driver's, of those directories that have some; the first of a name counts.
fn libraries(directories: &[Utf8PathBuf]) -> BTreeMap<String, Utf8PathBuf> {
    let mut out = BTreeMap::new();
    for directory in directories {
        let entries = directory.read_dir_utf8().into_iter().flatten().flatten();
        let names: Vec<String> = entries.map(|entry| entry.file_name().to_owned()).collect();
        let is_marked = |name: &String| MARKS.iter().any(|mark| name.starts_with(mark));
        if !names.iter().any(is_marked) {
            continue;
        }
        for name in names {
            let is_its = LIBRARIES.iter().any(|prefix| name.starts_with(prefix));
            if !is_its || !name.contains(".so") {
                continue;
            }
            if let Ok(at) = directory.join(&name).canonicalize_utf8()
                && at.is_file()
            {
                out.entry(name).or_insert(at);
            }
        }
    }
    out
}

fn devices() -> Vec<Utf8PathBuf> {
    let entries = Utf8Path::new("/dev").read_dir_utf8();
    let entries = entries.into_iter().flatten().flatten();
    let mut out: Vec<Utf8PathBuf> = entries
        .filter(|entry| entry.file_name().starts_with("nvidia"))
        .map(|entry| entry.path().to_owned())
        .collect();
    out.sort();
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_with_a_driver_give_libraries_and_only_its() {
        let dir = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(dir.path()).unwrap();
        let (driver, other) = (path.join("driver"), path.join("other"));
        for directory in [&driver, &other] {
            std::fs::create_dir(directory).unwrap();
            for name in ["libnvidia-glcore.so.1", "libc.so.6"] {
                std::fs::write(directory.join(name), "").unwrap();
            }
        }
        std::fs::write(driver.join("libcuda.so.1.2"), "").unwrap();
        std::os::unix::fs::symlink("libcuda.so.1.2", driver.join("libcuda.so.1")).unwrap();
        std::os::unix::fs::symlink("nowhere", driver.join("libcuda.so")).unwrap();
        let found = libraries(&[other, driver.clone()]);
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(
            names,
            ["libcuda.so.1", "libcuda.so.1.2", "libnvidia-glcore.so.1"]
        );
        assert!(
            found["libcuda.so.1"]
                .as_str()
                .ends_with("driver/libcuda.so.1.2")
        );
    }
}
