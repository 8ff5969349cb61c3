//! Templates: `$NAME` in the files images bring, Tera in our own and the administrator's.

pub mod dollar;
mod tera_files;
pub mod variables;

pub use dollar::{Place, Value, substitute};
pub use tera_files::{Template, render};
pub use variables::Variables;
