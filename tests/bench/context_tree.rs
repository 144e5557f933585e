//! A large build context: many small files of incompressible bytes in nested folders, and a Dockerfile that copies the part
//! that stays apart from the part that changes.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

pub struct ContextTree {
    path: PathBuf,
    file_bytes: usize,
}

const DOCKERFILE: &str =
    "FROM busybox\nRUN --mount=type=bind,source=assets,target=/in find /in -type f | wc -l >/count\nCOPY src /src\n";

impl ContextTree {
    /// `files` files of `bytes` in all, different from those of every other tree.
    pub fn create(path: &Path, files: usize, bytes: usize) -> anyhow::Result<Self> {
        let file_bytes = bytes / files;
        let mut random = fs::File::open("/dev/urandom")?;
        let mut seed = [0_u8; 8];
        std::io::Read::read_exact(&mut random, &mut seed)?;
        let mut state = u64::from_le_bytes(seed) | 1;
        let mut content = vec![0_u8; file_bytes];
        for index in 0..files {
            let part = if index % 100 == 0 { "src" } else { "assets" };
            let folder = path.join(part).join(format!("d{}", index / 1000)).join(format!("e{}", index / 100 % 10));
            if index % 100 <= 1 {
                fs::create_dir_all(&folder)?;
            }
            fill(&mut content, &mut state);
            fs::write(folder.join(format!("f{index}")), &content)?;
        }
        fs::write(path.join("Dockerfile"), DOCKERFILE)?;
        Ok(Self { path: path.to_owned(), file_bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a line to one source file and returns the file's size.
    pub fn change_one(&self, edit: usize) -> anyhow::Result<usize> {
        let file = self.path.join("src/d3/e0/f3000");
        let mut file = fs::OpenOptions::new().append(true).open(file)?;
        let line = format!("edit {edit} of {}\n", self.path.display());
        file.write_all(line.as_bytes())?;
        Ok(self.file_bytes + line.len())
    }

    pub fn remove(self) -> anyhow::Result<()> {
        Ok(fs::remove_dir_all(self.path)?)
    }
}

/// xorshift64*: incompressible, and faster than reading that much randomness.
fn fill(content: &mut [u8], state: &mut u64) {
    for word in content.chunks_mut(8) {
        *state ^= *state >> 12;
        *state ^= *state << 25;
        *state ^= *state >> 27;
        let bytes = state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes();
        word.copy_from_slice(&bytes[..word.len()]);
    }
}
