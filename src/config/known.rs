//! Refuses a field that is not known, and names the nearest one that is.

use crate::error::{Error, ErrorKind, Result};

/// Errors with `InvalidArgument` if the table has a field that is not among the `known`; `prefix` names the table, with its dot.
pub(super) fn check_fields(prefix: &str, table: &toml::Table, known: &[&str]) -> Result<()> {
    let Some(unknown) = table.keys().find(|key| !known.contains(&key.as_str())) else { return Ok(()) };
    let nearest = known.iter().min_by_key(|field| distance(field, unknown));
    let error = Error::new(ErrorKind::InvalidArgument, format!("unknown field `{prefix}{unknown}`"));
    Err(match nearest {
        Some(field) if distance(field, unknown) <= 1 + field.len() / 2 => {
            error.advise(format!("did you mean `{prefix}{field}`?"))
        }
        _ => error.advise(format!("known here: {}", known.join(", "))),
    })
}

/// Edits (insert, delete, replace) that turn one word into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().take(64).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = corner + usize::from(from != *to);
            corner = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(corner + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::distance;

    #[test]
    fn the_distance_of_words_counts_edits() {
        assert_eq!((distance("data", "daat"), distance("size", "size"), distance("fs", "")), (2, 0, 2));
    }
}
