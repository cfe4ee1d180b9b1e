//! Code in Markdown pages.

/// The first words of commands in the text. Other code in the text consists of names.
const PROGRAMS: [&str; 7] = ["cargo", "cc", "make", "pkg-config", "scripts/", "./scripts/", "sudo"];

/// Returns the commands of a page: the lines of shell blocks, the lines with a prompt in other blocks, and
/// code in the text that begins with a known program.
pub fn commands(page: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut block = None;
    for line in page.lines() {
        match (line.strip_prefix("```"), block) {
            (Some(language), None) => {
                found.extend(in_text(&text));
                text.clear();
                block = Some(language);
            }
            (Some(_), Some(_)) => block = None,
            (None, Some("sh")) => found.extend(without_comment(line)),
            (None, Some("text")) => found.extend(line.strip_prefix("$ ").map(str::to_owned)),
            (None, Some(_)) => {}
            (None, None) => text.extend([line, " "]),
        }
    }
    found.extend(in_text(&text));
    found
}

/// Returns the blocks of a page in a language.
pub fn code(page: &str, language: &str) -> Vec<String> {
    let parts = page.split("```").skip(1).step_by(2);
    parts.filter_map(|part| Some(part.strip_prefix(language)?.strip_prefix('\n')?.to_owned())).collect()
}

fn without_comment(line: &str) -> Option<String> {
    let command = line.split(" #").next()?.trim();
    (!command.is_empty() && !command.starts_with('#')).then(|| command.to_owned())
}

fn in_text(text: &str) -> Vec<String> {
    let spans = text.split('`').skip(1).step_by(2);
    let is_command = |span: &&str| {
        let mut words = span.split_whitespace().skip_while(|word| is_setting(word));
        let first = words.next().unwrap_or_default();
        PROGRAMS.iter().any(|program| match program.ends_with('/') {
            true => first.starts_with(program),
            false => first == *program && words.clone().next().is_some(),
        })
    };
    spans.filter(is_command).map(|span| span.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// Returns true if a word sets a variable of the environment.
pub fn is_setting(word: &str) -> bool {
    let name = word.split_once('=').map(|(name, _)| name);
    name.is_some_and(|name| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_')
    })
}
