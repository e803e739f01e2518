//! How much memory a call asks for before its message is there.

use std::marker::PhantomData;

use prost::Message;
use tonic::codec::{BufferSettings, Codec};
use tonic_prost::{ProstDecoder, ProstEncoder};

/// Holds the messages of all but few calls; a longer one grows its buffer. tonic's own 8 KiB, twice a call, are memory
/// that a thousand calls in flight touch for nothing.
const BUFFER_BYTES: usize = 512;
/// From here on a stream's messages are sent before more of them are taken: tonic's own bound.
const YIELD_BYTES: usize = 32 * 1024;

fn buffers() -> BufferSettings {
    BufferSettings::new(BUFFER_BYTES, YIELD_BYTES)
}

/// prost's codec, with buffers of the size of our messages.
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
