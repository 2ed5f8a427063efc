//! Which files of a repository a model needs.
//! Does not know where the list of files is from: the hub or a folder.

use super::error::HubError;

/// The quantisation that is taken where a GGUF repository is named without one.
const USUAL_QUANTISATION: &str = "q4_k_m";
/// Files of a safetensors model beside the weights.
const COMPANIONS: [&str; 5] =
    ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];
/// At most this many choices are shown.
const CHOICES_SHOWN: usize = 12;

/// The files that make a model, by their paths in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// One GGUF file.
    Gguf(String),
    /// A folder of safetensors.
    Folder(Vec<String>),
}

/// Selects from a repository's files: the GGUF that `wanted` names by file or quantisation, else its safetensors, else its
/// usual GGUF.
///
/// # Errors
/// [`HubError::Selection`] where nothing fits, or more than one thing does.
pub(super) fn select(repository: &str, files: &[String], wanted: Option<&str>) -> Result<Selection, HubError> {
    let fail = |reason: String| HubError::Selection { repository: repository.to_owned(), reason };
    let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_model_gguf(file)).collect();
    if wanted.is_none()
        && let Some(folder) = safetensors(files)
    {
        return Ok(Selection::Folder(folder));
    }
    if ggufs.is_empty() {
        return Err(fail(match wanted {
            Some(wanted) => format!("it holds no GGUF file, so {wanted:?} names nothing in it"),
            None => {
                "it holds neither a model in safetensors (config.json, tokenizer.json, *.safetensors) nor a GGUF file"
                    .into()
            }
        }));
    }
    let fitting: Vec<&str> = match wanted {
        Some(wanted) => ggufs.iter().copied().filter(|file| is_named(file, wanted)).collect(),
        None if ggufs.len() == 1 => ggufs.clone(),
        None => ggufs.iter().copied().filter(|file| is_named(file, USUAL_QUANTISATION)).collect(),
    };
    match fitting.as_slice() {
        [file] if is_part(file) => {
            Err(fail(format!("{file} is one part of a split file, which is not supported; name another")))
        }
        [file] => Ok(Selection::Gguf((*file).to_owned())),
        [] => Err(fail(format!(
            "no file of it is {}; there are {}",
            wanted.unwrap_or(USUAL_QUANTISATION),
            choices(&ggufs)
        ))),
        several if several.iter().all(|file| is_part(file)) => Err(fail(format!(
            "{} is split into {} files, which is not supported; name another of {}",
            wanted.unwrap_or(USUAL_QUANTISATION),
            several.len(),
            choices(&ggufs)
        ))),
        several => Err(fail(format!("several files fit; name one of {} after a colon", choices(several)))),
    }
}

/// The files of a safetensors model; `None` where an essential one is missing.
fn safetensors(files: &[String]) -> Option<Vec<String>> {
    let has = |name: &str| files.iter().any(|file| file == name);
    if !has("config.json") || !has("tokenizer.json") {
        return None;
    }
    let top_level = files.iter().filter(|file| !file.contains('/'));
    let weights: Vec<&String> =
        top_level.filter(|file| file.ends_with(".safetensors") || file.ends_with(".safetensors.index.json")).collect();
    // A repository may hold the same weights once more under another name (`consolidated...`).
    let has_usual = weights.iter().any(|file| file.starts_with("model") && file.ends_with(".safetensors"));
    let weights: Vec<String> =
        weights.into_iter().filter(|file| !has_usual || file.starts_with("model")).cloned().collect();
    if !weights.iter().any(|file| file.ends_with(".safetensors")) {
        return None;
    }
    let companions = COMPANIONS.into_iter().filter(|name| has(name)).map(str::to_owned);
    Some(companions.chain(weights).collect())
}

/// GGUF files that are language models: not projectors, not calibration data.
fn is_model_gguf(file: &str) -> bool {
    let file = file.to_ascii_lowercase();
    file.ends_with(".gguf") && !file.contains("mmproj") && !file.contains("imatrix")
}

/// Whether `wanted` is the file's path or name, or stands in the name as a word of its own.
fn is_named(file: &str, wanted: &str) -> bool {
    let (file, wanted) = (file.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    let name = file.rsplit('/').next().unwrap_or(&file);
    file == wanted || name == wanted || name.trim_end_matches(".gguf").split(['-', '.']).any(|word| word == wanted)
}

/// Whether a file is one of several that belong together: `...-00001-of-00003.gguf`.
fn is_part(file: &str) -> bool {
    let mut words = file.trim_end_matches(".gguf").rsplit('-');
    let is_count =
        |word: Option<&str>| word.is_some_and(|word| word.len() == 5 && word.bytes().all(|byte| byte.is_ascii_digit()));
    is_count(words.next()) && words.next() == Some("of") && is_count(words.next())
}

fn choices(files: &[&str]) -> String {
    let shown = files.iter().take(CHOICES_SHOWN).copied().collect::<Vec<_>>().join(", ");
    if files.len() > CHOICES_SHOWN { format!("{shown}, ...") } else { shown }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&str], wanted: Option<&str>) -> Result<Selection, String> {
        let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
        select("org/name", &files, wanted).map_err(|error| error.to_string())
    }

    fn gguf(file: &str) -> Result<Selection, String> {
        Ok(Selection::Gguf(file.into()))
    }

    const GGUFS: [&str; 6] = [
        "README.md",
        "a-7b-q2_k.gguf",
        "a-7b-q4_k_m.gguf",
        "a-7b-q8_0-00001-of-00002.gguf",
        "a-7b-q8_0-00002-of-00002.gguf",
        "mmproj-a.gguf",
    ];

    #[test]
    fn a_gguf_is_chosen_by_file_by_quantisation_or_by_custom() {
        assert_eq!(chosen(&GGUFS, Some("Q2_K")), gguf("a-7b-q2_k.gguf"));
        assert_eq!(chosen(&GGUFS, Some("a-7b-q2_k.gguf")), gguf("a-7b-q2_k.gguf"));
        assert_eq!(chosen(&GGUFS, None), gguf("a-7b-q4_k_m.gguf"));
        assert_eq!(chosen(&["x.Q4_1.gguf"], None), gguf("x.Q4_1.gguf"));
        assert_eq!(chosen(&["x.Q4_1.gguf", "x.Q4_0.gguf"], Some("q4_1")), gguf("x.Q4_1.gguf"));
        assert_eq!(chosen(&["sub/x-Q4_K_M.gguf", "x-Q8_0.gguf"], Some("q4_k_m")), gguf("sub/x-Q4_K_M.gguf"));
    }

    #[test]
    fn what_cannot_be_chosen_says_what_there_is() {
        assert!(chosen(&GGUFS, Some("q8_0")).unwrap_err().contains("split into 2 files"));
        assert!(chosen(&GGUFS, Some("q5_k_m")).unwrap_err().contains("a-7b-q2_k.gguf, a-7b-q4_k_m.gguf"));
        assert!(chosen(&["x.Q4_1.gguf", "x.Q4_0.gguf"], None).unwrap_err().contains("x.Q4_1.gguf"));
        assert!(chosen(&["a-q4_0.gguf", "b-q4_0.gguf"], Some("q4_0")).unwrap_err().contains("several files fit"));
        assert!(chosen(&["pytorch_model.bin", "config.json"], None).unwrap_err().contains("neither"));
    }

    #[test]
    fn a_safetensors_folder_is_its_parts_and_nothing_else() {
        let files = [
            ".gitattributes",
            "README.md",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(chosen(&files, None), Ok(Selection::Folder(expected.map(str::to_owned).to_vec())));
        assert!(chosen(&["config.json", "model.safetensors"], None).is_err());
    }
}
