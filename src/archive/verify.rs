//! Whether a directory is what it says.

use super::{ArchivedImage, open_regular, sum_up};
use crate::error::{Context as _, Kind, Result};
use crate::image::Digest;
use crate::image::digest::Hashing;
use crate::pull;

/// A file that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The file, as the directory names it.
    pub path: String,
    /// What is wrong.
    pub what: String,
}

/// Read all of an image: every digest there is, of files as they are and of layers as they unpack.
pub fn verify(image: &ArchivedImage) -> Result<Vec<Finding>> {
    let mut out = Vec::new();
    let diff_ids = match image.diff_ids() {
        Ok(ids) => ids,
        Err(error) if error.kind() == Kind::Invalid => {
            out.push(Finding {
                path: image.config.to_string(),
                what: error.to_string(),
            });
            Vec::new()
        }
        Err(error) => return Err(error),
    };
    for (index, layer) in image.layers.iter().enumerate() {
        let path = image.directory.join(&layer.path);
        let mut add = |what: String| {
            out.push(Finding {
                path: layer.path.to_string(),
                what,
            });
        };
        let mut file = match open_regular(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == Kind::Invalid => {
                add(error.to_string());
                continue;
            }
            Err(_) => {
                add("it is not there".into());
                continue;
            }
        };
        if let Some(wanted) = &layer.described {
            let (digest, size) = sum_up(&mut file, &path)?;
            if (digest, size) != (wanted.digest, wanted.size) {
                add(format!("its digest is {digest}"));
                continue;
            }
        }
        let Some(wanted) = diff_ids.get(index) else {
            continue;
        };
        let unpacked = pull::with_unpacked(&path, |input| -> Result<Digest> {
            let mut hashing = Hashing::new(input);
            std::io::copy(&mut hashing, &mut std::io::sink())
                .kind(Kind::Invalid, || "it cannot be unpacked".into())?;
            Ok(hashing.finish().0)
        });
        match unpacked {
            Ok(found) if found == *wanted => {}
            Ok(found) => add(format!("it unpacks to {found}, and not to {wanted}")),
            Err(error) => add(error.to_string()),
        }
    }
    Ok(out)
}
