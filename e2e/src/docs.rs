//! The pages of the project, as tests read them.

/// The manifests in the YAML blocks of a Markdown file.
pub fn manifests(markdown: &str) -> Vec<String> {
    markdown
        .split("```yaml\n")
        .skip(1)
        .filter_map(|block| block.split("```").next())
        .filter(|block| block.contains("apiVersion:"))
        .map(str::to_owned)
        .collect()
}
