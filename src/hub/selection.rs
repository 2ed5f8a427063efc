//! Which files of a repository a model needs.
//! Does not know where the list of files is from: the hub or a folder.

use super::error::HubError;

/// The quantisation that is taken where a GGUF repository is named without one.
const USUAL_QUANTISATION: &str = "q4_k_m";
/// Files of a safetensors model beside the weights; of `hf_quant_config.json` the loader says what it makes of it.
const COMPANIONS: [&str; 8] = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "quantize_config.json",
    "hf_quant_config.json",
    "1_Pooling/config.json",
];
/// At most this many choices are shown.
const CHOICES_SHOWN: usize = 12;

/// The files that make a model, by their paths in the repository.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Selection {
    /// One GGUF file.
    Gguf(String),
    /// One model in several GGUF files, in order.
    GgufParts(Vec<String>),
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
    if wanted.is_none()
        && let Some(folder) = safetensors(files)
    {
        return Ok(Selection::Folder(folder));
    }
    let models = models(files);
    if models.is_empty() {
        return Err(fail(match wanted {
            Some(wanted) => format!("it holds no GGUF file, so {wanted:?} names nothing in it"),
            None => {
                "it holds neither a model in safetensors (config.json, tokenizer.json, *.safetensors) nor a GGUF file"
                    .into()
            }
        }));
    }
    let named = |wanted: &str| models.iter().filter(|parts| parts.iter().any(|file| is_named(file, wanted))).collect();
    let fitting: Vec<&Vec<&str>> = match wanted {
        Some(wanted) => named(wanted),
        None if models.len() == 1 => models.iter().collect(),
        None => named(USUAL_QUANTISATION),
    };
    match fitting.as_slice() {
        [parts] => match missing_part(parts) {
            None if parts.len() == 1 => Ok(Selection::Gguf(parts[0].to_owned())),
            None => Ok(Selection::GgufParts(parts.iter().map(|part| (*part).to_owned()).collect())),
            Some(number) => Err(fail(format!("part {number} of {} is missing", parts[0]))),
        },
        [] => Err(fail(format!(
            "no file of it is {}; there are {}",
            wanted.unwrap_or(USUAL_QUANTISATION),
            choices(models.iter())
        ))),
        several => {
            Err(fail(format!("several files fit; name one of {} after a colon", choices(several.iter().copied()))))
        }
    }
}

/// The GGUF file that a model of these files is opened by: the only one, or the first of one model's parts.
pub(super) fn entry_of(files: &[&str]) -> Option<String> {
    let is_gguf = |file: &&&str| file.to_ascii_lowercase().ends_with(".gguf");
    let owned: Vec<String> = files.iter().filter(is_gguf).map(|file| (*file).to_owned()).collect();
    match &owned[..] {
        [file] => Some(file.clone()),
        several => match models(several).as_slice() {
            [parts] if parts.len() == several.len() && missing_part(parts).is_none() => Some(parts[0].to_owned()),
            _ => None,
        },
    }
}

/// The GGUF files that are language models, those of one model together and in order.
fn models(files: &[String]) -> Vec<Vec<&str>> {
    let mut models: Vec<Vec<&str>> = Vec::new();
    for file in files.iter().map(String::as_str).filter(|file| is_model_gguf(file)) {
        let whole = part_of(file).map(|part| (part.stem, part.count));
        let same = |other: &&mut Vec<&str>| part_of(other[0]).map(|part| (part.stem, part.count)) == whole;
        match models.iter_mut().find(same).filter(|_| whole.is_some()) {
            Some(model) => model.push(file),
            None => models.push(vec![file]),
        }
    }
    models.iter_mut().for_each(|parts| parts.sort_unstable());
    models
}

/// The number of the first part that is not among those of a model.
fn missing_part(parts: &[&str]) -> Option<usize> {
    let count = part_of(parts[0])?.count;
    (1..=count)
        .find(|number| parts.get(number - 1).and_then(|file| part_of(file)).is_none_or(|part| part.number != *number))
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

/// One of several files that belong together: `STEM-00001-of-00003.gguf`.
struct Part<'a> {
    /// What is alike in the paths of all of them.
    stem: &'a str,
    /// From 1.
    number: usize,
    /// How many there are.
    count: usize,
}

/// Which part of a model a file is, by its name; `None`: it is a whole one. As `weights` reads such names.
fn part_of(file: &str) -> Option<Part<'_>> {
    let (rest, count) = file.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let is_number = |word: &str| word.len() == 5 && word.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(number) || !is_number(count) {
        return None;
    }
    Some(Part { stem, number: number.parse().ok()?, count: count.parse().ok()? })
}

/// Whether a file is one of several that belong together.
pub(super) fn is_part(file: &str) -> bool {
    part_of(file).is_some()
}

/// The first file of each model, for errors.
fn choices<'a>(models: impl ExactSizeIterator<Item = &'a Vec<&'a str>>) -> String {
    let count = models.len();
    let shown = models.take(CHOICES_SHOWN).map(|parts| parts[0]).collect::<Vec<_>>().join(", ");
    if count > CHOICES_SHOWN { format!("{shown}, ...") } else { shown }
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
    fn a_model_in_parts_is_all_of_them_in_order() {
        let parts = |files: &[&str]| Ok(Selection::GgufParts(files.iter().map(|file| (*file).to_owned()).collect()));
        for wanted in ["Q8_0", "a-7b-q8_0-00001-of-00002.gguf", "a-7b-q8_0-00002-of-00002.gguf"] {
            assert_eq!(chosen(&GGUFS, Some(wanted)), parts(&GGUFS[3..5]), "{wanted}");
        }
        let in_folders = ["Q4_K_M/x-00002-of-00002.gguf", "Q4_K_M/x-00001-of-00002.gguf", "Q8_0/x-00001-of-00001.gguf"];
        let expected = [in_folders[1], in_folders[0]];
        assert_eq!(chosen(&in_folders[..2], None), parts(&expected));
        assert_eq!(chosen(&in_folders, Some(in_folders[0])), parts(&expected));
        assert_eq!(chosen(&in_folders[2..], None), gguf(in_folders[2]));
        // Cut once into two and once into three.
        let twice = ["x-q4_k_m-00001-of-00002.gguf", "x-q4_k_m-00002-of-00002.gguf", "x-q4_k_m-00001-of-00003.gguf"];
        assert!(chosen(&twice, None).unwrap_err().contains("several files fit"));
        assert_eq!(entry_of(&twice[..2]).as_deref(), Some(twice[0]));
        assert_eq!(entry_of(&["README.md", "m.GGUF"]).as_deref(), Some("m.GGUF"));
        assert_eq!(
            [entry_of(&twice), entry_of(&twice[..1]), entry_of(&["a.gguf", "b.gguf"])],
            [None, Some(twice[0].into()), None]
        );
    }

    #[test]
    fn what_cannot_be_chosen_says_what_there_is() {
        let error = chosen(&GGUFS[..4], Some("q8_0")).unwrap_err();
        assert!(error.contains("part 2 of a-7b-q8_0-00001-of-00002.gguf is missing"), "{error}");
        assert!(chosen(&GGUFS, Some("q5_k_m")).unwrap_err().contains("a-7b-q2_k.gguf, a-7b-q4_k_m.gguf"));
        assert!(chosen(&["x.Q4_1.gguf", "x.Q4_0.gguf"], None).unwrap_err().contains("x.Q4_1.gguf"));
        assert!(chosen(&["a-q4_0.gguf", "b-q4_0.gguf"], Some("q4_0")).unwrap_err().contains("several files fit"));
        assert!(chosen(&["pytorch_model.bin", "config.json"], None).unwrap_err().contains("neither"));
    }

    #[test]
    fn a_safetensors_folder_is_its_parts_and_nothing_else() {
        let files = [
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "generation_config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "original/consolidated.safetensors",
            "consolidated.safetensors",
            "pytorch_model.bin",
            "quantize_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "vocab.json",
        ];
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "quantize_config.json",
            "1_Pooling/config.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
        ];
        assert_eq!(chosen(&files, None), Ok(Selection::Folder(expected.map(str::to_owned).to_vec())));
        assert!(chosen(&["config.json", "model.safetensors"], None).is_err());
    }
}
