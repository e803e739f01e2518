//! The codec of the gRPC messages: prost, with small buffers.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// The first size of a buffer. Most messages are shorter; a longer message grows its buffer. tonic's default is 8 KiB, twice
/// a call, which costs memory for each call in flight.
const BUFFER_BYTES: usize = 512;
/// A stream sends its encoded messages before it encodes more than this; the default of tonic.
const YIELD_BYTES: usize = 32 * 1024;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// The codec of prost, with buffers of [`BUFFER_BYTES`].
pub(super) struct ShortMessageCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for ShortMessageCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + Send + 'static, U: Message + Default + Send + 'static> Codec for ShortMessageCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = ProstDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::new(buffers())
    }

    fn decoder(&mut self) -> Self::Decoder {
        ProstDecoder::new(buffers())
    }
}
