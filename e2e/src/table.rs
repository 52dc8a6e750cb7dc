//! Tables for a terminal.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligns_words_left_and_numbers_right() {
        let rows = [["client", "answers"], ["reviews", "120"], ["x", "7"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(text(&rows), "client    answers\nreviews       120\nx               7\n");
    }
}
