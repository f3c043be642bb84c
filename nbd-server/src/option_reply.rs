//! Replies to options, as bytes. Pure.

use bytes::BufMut;

use crate::device::DeviceInfo;
use crate::negotiate::MAX_OPTION_DATA;
use crate::proto::{self, OPTION_REPLY_MAGIC, info, rep};

/// Appends the `NBD_INFO_EXPORT` of a device.
pub fn export_info(out: &mut Vec<u8>, option: u32, size: u64, flags: u16) {
    let mut data = Vec::with_capacity(12);
    data.put_u16(info::EXPORT);
    data.put_u64(size);
    data.put_u16(flags);
    reply(out, option, rep::INFO, &data);
}

/// Appends the `NBD_INFO_BLOCK_SIZE` of a device.
pub fn block_size_info(out: &mut Vec<u8>, option: u32, device: &DeviceInfo) {
    let mut data = Vec::with_capacity(14);
    data.put_u16(info::BLOCK_SIZE);
    data.put_u32(device.min_block);
    data.put_u32(device.preferred_block);
    data.put_u32(device.max_payload);
    reply(out, option, rep::INFO, &data);
}

/// Appends `NBD_REP_ERR_TOO_BIG`.
pub fn too_big(out: &mut Vec<u8>, option: u32) {
    let text = format!("up to {MAX_OPTION_DATA} bytes of data are accepted");
    refuse(out, option, rep::ERR_TOO_BIG, &text);
}

/// Appends `NBD_REP_ERR_UNSUP`.
pub fn unsupported(out: &mut Vec<u8>, option: u32) {
    refuse(
        out,
        option,
        rep::ERR_UNSUP,
        &format!("option {option} is not supported"),
    );
}

/// Appends an `NBD_REP_INFO` that is a string.
pub fn text_info(out: &mut Vec<u8>, option: u32, kind: u16, text: &str) {
    let mut data = Vec::with_capacity(2 + text.len());
    data.put_u16(kind);
    data.put_slice(text.as_bytes());
    reply(out, option, rep::INFO, &data);
}

/// Appends an error with its sentence, cut to what a string may be.
pub fn refuse(out: &mut Vec<u8>, option: u32, code: u32, text: &str) {
    reply(out, option, code, proto::clip(text).as_bytes());
}

/// Appends a reply.
pub fn reply(out: &mut Vec<u8>, option: u32, code: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(code);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}
