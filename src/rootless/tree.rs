//! The files of an image, made once and shared by all containers of it.
//!
//! # Format
//! `H/trees/TREE/checkout/` is a checkout of the image's tree, of hard links to the store; nobody writes to it.
//! Beside it `owners-IDS/` is the owner layer for one id mapping (see [`crate::deployment::owners`]), empty
//! where all is root's. TREE: the beginning of the checksum of the tree; IDS: of that of the mapping.

use camino::Utf8PathBuf;

use super::home::Home;
use crate::config::Config;
use crate::deployment::owners::OwnerLayer;
use crate::error::{Context as _, Result};
use crate::image::Digest;
use crate::runtime::userns::Mapping;
use crate::safefs;
use crate::store::Store;
use crate::store::images::StoredImage;

/// So much of a checksum is enough of a name.
const NAME_LENGTH: usize = 32;

/// The shared files of an image.
#[derive(Debug, Clone)]
pub struct Tree {
    /// Where they are.
    pub path: Utf8PathBuf,
}

impl Tree {
    /// Those of this name.
    pub fn of(home: &Home, name: &str) -> Self {
        Self {
            path: home.trees().join(name),
        }
    }

    /// The name by which a container knows it.
    pub fn name(&self) -> &str {
        self.path.file_name().unwrap_or_default()
    }

    /// Make what is not there yet; [`Home::turn`] must be held.
    pub fn make(config: &Config, home: &Home, store: &Store, image: &StoredImage) -> Result<Self> {
        let commit = store.image_tree(image)?;
        let checksum = store.tree_of(&commit)?;
        let name = checksum.get(..NAME_LENGTH).unwrap_or(&checksum);
        let tree = Self::of(home, name);
        if !tree.path.is_dir() {
            let staged = home.trees().join(format!(".{name}.new"));
            safefs::remove_tree(staged.as_std_path())?;
            safefs::make_private_dir(staged.as_std_path())?;
            store.check_out_as(&commit, &staged, "checkout")?;
            // It is links alone, to what is durable already: file systems with a journal have them before the name.
            safefs::rename(staged.as_std_path(), tree.path.as_std_path())?;
        }
        let mapping = Mapping::of_user();
        let owners = tree.owners(&mapping);
        if !config.is_system && mapping.has_range() && !owners.is_dir() {
            match OwnerLayer::of(config, store, &commit)? {
                Some(layer) => layer.at(&owners).make(config, &tree.checkout())?,
                None => {
                    std::fs::create_dir(&owners).context(|| format!("cannot create {owners}"))?;
                }
            }
        }
        Ok(tree)
    }

    /// The checkout.
    pub fn checkout(&self) -> Utf8PathBuf {
        self.path.join("checkout")
    }

    /// The owner layer for a mapping.
    pub fn owners(&self, mapping: &Mapping) -> Utf8PathBuf {
        let ids = Digest::of(mapping.to_string().as_bytes()).hex();
        self.path
            .join(format!("owners-{}", ids.get(..16).unwrap_or(&ids)))
    }

    /// Remove those that no container stands on, and what killed ones left; [`Home::turn`] must be held.
    ///
    /// # Errors
    /// A container that cannot be read may stand on any, so nothing is removed then.
    pub fn sweep(home: &Home) -> Result<()> {
        let containers = home.list_all()?.into_iter().collect::<Result<Vec<_>>>()?;
        let used: Vec<String> = containers
            .into_iter()
            .map(|container| container.record.tree)
            .collect();
        let path = home.trees();
        let Ok(entries) = path.read_dir_utf8() else {
            return Ok(());
        };
        for entry in entries.flatten() {
            if !used.iter().any(|name| name == entry.file_name()) {
                Mapping::of_user().remove_tree(entry.path())?;
            }
        }
        Ok(())
    }
}
