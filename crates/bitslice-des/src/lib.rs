//! 3DES of many blocks at once, each under its own key, in constant time.
//!
//! The bitsliced form (E. Biham, *A Fast New DES Implementation in Software*, FSE 1997) keeps one bit of 64 or 256 blocks in one
//! word. Permutations are then choices of words, and the S-boxes are circuits of AND, OR, XOR and NOT: no memory address and no
//! branch depends on a key or a block.
//!
//! ```
//! use bitslice_des::Batch;
//!
//! # fn main() -> Result<(), bitslice_des::Full> {
//! let key = 0x0011_2233_4455_6677_8899_AABB_CCDD_EEFFu128.to_be_bytes();
//! let mut batch = Batch::new();
//! batch.push_double(&key, &0x1412_34AA_AAAA_AAAAu64.to_be_bytes())?;
//! let mut block = [0; 8];
//! batch.encrypt().copy(0, &mut block);
//! assert_eq!(u64::from_be_bytes(block), 0x8173_9710_556E_1518);
//! # Ok(())
//! # }
//! ```
//!
//! Keys and blocks cannot be printed or cloned:
//! ```compile_fail
//! println!("{:?}", bitslice_des::Batch::new());
//! ```
//! ```compile_fail
//! let _ = bitslice_des::Batch::new().clone();
//! ```

mod batch;
mod cipher;
mod circuits;
mod fips_46_3;
#[cfg(test)]
mod s_boxes;
mod transpose;
mod word;

pub use batch::{Batch, Blocks, Full};
