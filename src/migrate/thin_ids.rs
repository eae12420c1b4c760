//! A list of thin devices, as a person writes it: one a line, for pools whose program is not known here.

use thinsnap_pool::DeviceId;

use crate::config::parse_size;
use crate::error::{Error, ErrorKind, Result};
use crate::migrate::wanted::{Wanted, WantedFs};
use crate::snapshot::{Kind, Labels};

/// What a line is, for whoever gets it wrong.
const FORM: &str = "each line is: ID SIZE FS KIND NAME [PARENT], as in `7 10G ext4 committed debian` or `9 10G ext4 active web \
                    debian`; KIND is committed or active";

/// Reads the list; `#` begins a comment. `now_ns` becomes the time of all of them. Errors: `InvalidArgument`, naming the
/// line.
pub fn parse_thin_ids(text: &str, now_ns: i64) -> Result<Vec<Wanted>> {
    let mut all = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default();
        if line.trim().is_empty() {
            continue;
        }
        all.push(parse_line(line, now_ns).map_err(|error| error.doing(format!("line {}", n + 1)).advise(FORM))?);
    }
    Ok(all)
}

fn parse_line(line: &str, now_ns: i64) -> Result<Wanted> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let ([id, size, fs, kind, name], parent) = match words[..] {
        [id, size, fs, kind, name] => ([id, size, fs, kind, name], None),
        [id, size, fs, kind, name, parent] => ([id, size, fs, kind, name], Some(parent.to_owned())),
        _ => return Err(Error::new(ErrorKind::InvalidArgument, format!("it has {} words", words.len()))),
    };
    let kind = match kind {
        "committed" => Kind::Committed,
        "active" => Kind::Active,
        _ => return Err(Error::new(ErrorKind::InvalidArgument, format!("{kind:?} is no kind of snapshot"))),
    };
    let number = id.parse().map_err(|_| Error::new(ErrorKind::InvalidArgument, format!("{id:?} is no number")))?;
    Ok(Wanted {
        name: name.to_owned(),
        parent,
        kind,
        labels: Labels::new(),
        created_ns: now_ns,
        updated_ns: now_ns,
        device: Some(DeviceId::new(number)?),
        size: parse_size(size)?,
        fs: WantedFs::of(fs),
        usage: None,
        trouble: None,
        notes: Vec::new(),
    })
}
