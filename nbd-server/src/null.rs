//! A device that does nothing: what the front end costs by itself.

use bytes::{Bytes, BytesMut};

use crate::device::{
    Access, Answer, BlockDevice, Completion, DeviceInfo, DirtyExtent, Extent, ReadData, Refusal,
    Request,
};

/// Reads as zeroes and forgets what is written. Completes within `submit`.
#[derive(Debug)]
pub struct NullDevice {
    info: DeviceInfo,
}

/// What reads up to this length are answered from; longer ones are answered as zeroes, without
/// memory.
static ZEROES: [u8; 1 << 20] = [0; 1 << 20];

impl NullDevice {
    /// A device of `size` bytes.
    pub fn new(size: u64) -> Self {
        Self {
            info: DeviceInfo {
                dirty: false,
                ..DeviceInfo::new(size)
            },
        }
    }
}

impl BlockDevice for NullDevice {
    type Buffer = BytesMut;
    type Opening = ();

    fn info(&self, _access: Access) -> Result<DeviceInfo, Refusal> {
        Ok(self.info.clone())
    }

    fn open(&self, _access: Access) -> Result<(), Refusal> {
        Ok(())
    }

    async fn buffer(&self, len: usize) -> BytesMut {
        BytesMut::zeroed(len)
    }

    fn submit(&self, (): &(), request: Request, completion: Completion) {
        let answer = match request {
            Request::Read { len, .. } => Answer::Data(match ZEROES.get(..len as usize) {
                Some(zeroes) => ReadData::Whole(Bytes::from_static(zeroes)),
                None => ReadData::Zeroes,
            }),
            Request::BlockStatus {
                len,
                allocation,
                dirty,
                ..
            } => {
                let len = u64::from(len);
                let hole = Extent {
                    len,
                    hole: true,
                    zero: true,
                };
                let clean = DirtyExtent { len, dirty: false };
                Answer::Status {
                    allocation: if allocation { vec![hole] } else { Vec::new() },
                    dirty: if dirty { vec![clean] } else { Vec::new() },
                }
            }
            _ => Answer::Done,
        };
        completion.complete(Ok(answer));
    }
}
