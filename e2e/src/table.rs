//! Tables for a terminal: writes them, and reads those of kubectl.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

/// Formats rows as aligned columns; the first row is the header. Columns of numbers are right-aligned.
pub fn text(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let cell = |row: &Vec<String>, column: usize| row.get(column).cloned().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| rows.iter().map(|row| cell(row, column).chars().count()).max().unwrap_or(0))
        .collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|column| {
            rows.iter().skip(1).all(|row| cell(row, column).starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        let line: Vec<String> = (0..columns)
            .map(|column| {
                let (cell, width) = (cell(row, column), widths[column]);
                if numeric[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
            })
            .collect();
        out.push_str(line.join("   ").trim_end());
        out.push('\n');
    }
    out
}

/// The first row below the header, by column. Columns are left-aligned, and names of columns have no spaces.
pub fn first_row(table: &str) -> Result<BTreeMap<String, String>> {
    let mut lines = table.lines();
    let (header, row) = lines.next().zip(lines.next()).context("the table has no row")?;
    let mut cells = BTreeMap::new();
    let mut rest = header;
    while !rest.is_empty() {
        let start = header.len() - rest.len();
        let name = rest.split(' ').next().unwrap_or(rest);
        rest = rest[name.len()..].trim_start();
        let end = if rest.is_empty() { row.len() } else { (header.len() - rest.len()).min(row.len()) };
        let cell = row.get(start..end).unwrap_or_default().trim();
        cells.insert(name.to_owned(), cell.to_owned());
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_words_left_and_numbers_right() {
        let rows = [["client", "answers"], ["reviews", "120"], ["x", "7"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(text(&rows), "client    answers\nreviews       120\nx               7\n");
    }

    #[test]
    fn first_row_is_read_by_column() {
        let cells = |table: &str| first_row(table).map(|row| row.into_iter().collect::<Vec<_>>());
        let pairs = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(name, cell)| ((*name).to_owned(), (*cell).to_owned())).collect::<Vec<_>>()
        };
        let expected = pairs(&[("AGE", "5s"), ("MESSAGE", "no pod has a proxy"), ("NAME", "web"), ("READY", "")]);
        let table = "NAME   READY   AGE   MESSAGE\nweb            5s    no pod has a proxy\nx      y\n";
        assert_eq!(cells(table).expect("a row"), expected);
        assert_eq!(cells("NAME   READY\nweb\n").expect("a row"), pairs(&[("NAME", "web"), ("READY", "")]));
        assert!(cells("NAME   READY\n").is_err());
    }
}
