//! The room `prompt` against transformers: ids, pixels and placements of every conversation in `fixtures/parity`, and
//! what it refuses.

use std::path::PathBuf;
use std::sync::Arc;

use foveate_tasks::row::{Drawing, ImageData};
use foveate_train::prompt::{Conversation, ImageLimits, ImageProcessor, Part, PromptError, Prompter, Role, Turn};
use safetensors::SafeTensors;
use serde_json::Value as Json;

const MODELS: [&str; 4] = ["smolvlm", "smolvlm_nosplit", "smolvlm_v5", "idefics3"];
const TEXT_MODELS: [&str; 3] = ["llama", "qwen2", "qwen3"];

const QWEN_MODELS: [&str; 3] = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"];
const LLAVA_MODELS: [&str; 2] = ["llava_onevision", "llava_onevision_v5"];
const INTERNVL_MODELS: [&str; 2] = ["internvl", "internvl_v5"];

fn all_models() -> impl Iterator<Item = &'static str> {
    MODELS.into_iter().chain(TEXT_MODELS).chain(QWEN_MODELS).chain(LLAVA_MODELS).chain(INTERNVL_MODELS)
}

fn fixtures() -> PathBuf {
    concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures").into()
}

fn prompter(model: &str) -> Prompter {
    Prompter::load(&fixtures().join("models").join(model)).unwrap()
}

fn golden(model: &str) -> Json {
    let path = fixtures().join("parity").join(format!("{model}.json"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn picture(name: &str) -> ImageData {
    ImageData::Path(fixtures().join("images").join(name))
}

fn conversation(messages: &Json) -> Conversation {
    let part = |part: &Json| match part["type"].as_str().unwrap() {
        "image" => Part::Image(picture(part["image"].as_str().unwrap())),
        _ => Part::Text(part["text"].as_str().unwrap().to_string()),
    };
    let turn = |turn: &Json| Turn {
        role: Role::parse(turn["role"].as_str().unwrap()).unwrap(),
        parts: turn["content"].as_array().unwrap().iter().map(part).collect(),
    };
    Conversation { turns: messages.as_array().unwrap().iter().map(turn).collect() }
}

fn ids(json: &Json) -> Vec<u32> {
    json.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn ids_pixels_and_placements_equal_transformers() {
    for model in all_models() {
        let prompter = prompter(model);
        let golden = golden(model);
        let bytes = std::fs::read(fixtures().join("parity").join(format!("{model}.safetensors"))).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let table: Vec<f32> = tensors.tensor("pixel_table").map_or(Vec::new(), |table| {
            table.data().chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().unwrap())).collect()
        });
        let (mut prompts, mut pixels) = (0, 0);
        for (name, case) in golden["conversations"].as_object().unwrap() {
            let (prompt, completion) = prompter.scored(&conversation(&case["messages"])).unwrap();
            assert_eq!(prompt.ids, ids(&case["prompt_ids"]), "{model} {name}: prompt");
            assert_eq!(completion, ids(&case["completion_ids"]), "{model} {name}: completion");
            assert_eq!(prompt.placements, ids(&case["placements"]), "{model} {name}: placements");
            assert_eq!(prompt.tiles.len() as u64, case["num_tiles"].as_u64().unwrap(), "{model} {name}");
            // Tiles of one size in one tensor, or a tensor for each picture.
            let stacked = tensors.tensor(&format!("{name}.levels")).ok();
            let single = (0..).map_while(|i| tensors.tensor(&format!("{name}.levels.{i}")).ok());
            let mut want = Vec::new();
            for levels in stacked.into_iter().chain(single) {
                let plane: usize = levels.shape()[levels.shape().len() - 2..].iter().product();
                let values = levels.data().iter().enumerate();
                want.extend(values.map(|(i, &level)| table[i / plane % 3 * 256 + level as usize]));
            }
            let got = prompt.tiles.iter().flat_map(|tile| &tile.pixels);
            assert!(want.iter().eq(got), "{model} {name}: pixels");
            (prompts, pixels) = (prompts + 1, pixels + want.len());
        }
        // Lines for the table of docs/checkpoints.md; see tools/family_table.py.
        println!("measured | prompts | {model} | {prompts} of {prompts}");
        println!("measured | pixels | {model} | {pixels} values");
    }
}

#[test]
fn masked_conversations_hold_the_same_tokens() {
    for model in all_models() {
        let prompter = prompter(model);
        for (name, case) in golden(model)["conversations"].as_object().unwrap() {
            let conversation = conversation(&case["messages"]);
            let masked = prompter.masked(&conversation).unwrap();
            let (prompt, completion) = prompter.scored(&conversation).unwrap();
            let whole = [prompt.ids.clone(), completion.clone()].concat();
            assert_eq!(masked.input.ids, whole, "{model} {name}");
            assert_eq!(masked.input.placements, prompt.placements);
            assert_eq!(masked.input.tiles, prompt.tiles);
            let last = masked.trained.last().unwrap();
            assert_eq!(&whole[last.start as usize..last.end as usize], completion);
            let num_answers = conversation.turns.iter().filter(|turn| turn.role == Role::Assistant).count();
            assert_eq!(masked.trained.len(), num_answers);
            for range in &masked.trained {
                let answer = &whole[range.start as usize..range.end as usize];
                assert!(prompter.end_ids().contains(answer.last().unwrap()));
            }
        }
    }
}

/// A fixture's folder with one file written anew.
fn altered(model: &str, name: &str, content: &[u8]) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("models").join(model)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "safetensors") {
            std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    std::fs::write(copy.path().join(name), content).unwrap();
    copy
}

/// In the manner of Qwen3's: the last answer begins with its reasoning, or with an empty one, and earlier answers are
/// written without theirs.
const DROPS_REASONING: &str = "\
{%- set place = namespace(query=-1) %}
{%- for message in messages[::-1] %}
    {%- if place.query < 0 and message.role == 'user' %}{%- set place.query = messages|length - 1 - loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set text = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set reason = '' %}
        {%- if '</think>' in text %}
            {%- set reason = text.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > place.query %}{%- set text = '<think>\\n' + reason + '\\n</think>\\n\\n' + text %}{%- endif %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + text + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

#[test]
fn a_template_that_drops_earlier_reasoning_can_be_masked() {
    let folder = altered("qwen3", "chat_template.jinja", DROPS_REASONING.as_bytes());
    let prompter = Prompter::load(folder.path()).unwrap();
    let turns = vec![
        Turn::text(Role::User, "How many?"),
        Turn::text(Role::Assistant, "<think>\nTwo and one.\n</think>\n\nIt is 3."),
        Turn::text(Role::User, "And now?"),
        Turn::text(Role::Assistant, "4"),
        Turn::text(Role::User, "Sure?"),
        Turn::text(Role::Assistant, "<think>\nI look again.\n</think>\n\nYes."),
    ];
    let masked = prompter.masked(&Conversation { turns: turns.clone() }).unwrap();
    let shown: Vec<String> = masked
        .trained
        .iter()
        .map(|range| prompter.decode(&masked.input.ids[range.start as usize..range.end as usize], false))
        .collect();
    let last = "<think>\nI look again.\n</think>\n\nYes.<|im_end|>";
    assert_eq!(shown, ["It is 3.<|im_end|>", "4<|im_end|>", last]);
    let (prompt, completion) = prompter.scored(&Conversation { turns }).unwrap();
    assert_eq!(masked.input.ids, [prompt.ids, completion].concat());
    // One that writes something else in an answer's place is still refused.
    let lies = "{% for message in messages %}{{ message.role + ': ' + (message.content if loop.last or \
                message.role == 'user' else 'no') + '<|im_end|>' }}{% endfor %}";
    let folder = altered("qwen3", "chat_template.jinja", lies.as_bytes());
    let turns = ["a", "blue", "b", "c"].iter().enumerate();
    let turns =
        turns.map(|(i, text)| Turn::text(if i % 2 == 0 { Role::User } else { Role::Assistant }, *text)).collect();
    let refused = Prompter::load(folder.path()).unwrap().masked(&Conversation { turns });
    assert!(matches!(refused, Err(PromptError::NotAPrefix { .. })), "{refused:?}");
}

#[test]
fn limits_are_the_settings_that_transformers_reads() {
    let pixels = |min, max| ImageLimits { min_pixels: min, max_pixels: max, ..ImageLimits::default() };
    let edge = ImageLimits { longest_edge: Some(64), ..ImageLimits::default() };
    let whole = ImageLimits { split: Some(false), ..ImageLimits::default() };
    let tiles = ImageLimits { max_tiles: Some(2), ..ImageLimits::default() };
    let mut cases: Vec<(&str, ImageLimits)> = vec![];
    QWEN_MODELS.iter().for_each(|model| cases.extend([(*model, pixels(Some(512), Some(1024)))]));
    QWEN_MODELS.iter().for_each(|model| cases.extend([(*model, pixels(None, Some(1024)))]));
    MODELS.iter().for_each(|model| cases.extend([(*model, edge.clone()), (*model, whole.clone())]));
    INTERNVL_MODELS.iter().for_each(|model| cases.extend([(*model, tiles.clone())]));
    let mut fewer = 0;
    for (model, limits) in cases {
        let home = fixtures().join("models").join(model);
        let original = Prompter::load(&home).unwrap().processor().clone();
        let mut limited = original.clone();
        limits.apply(&mut limited).unwrap_or_else(|error| panic!("{model}: {error}"));
        let (name, content) = limits.save(&home).unwrap().expect("something to save");
        let folder = altered(model, name, &content);
        let saved = Prompter::load(folder.path()).unwrap();
        assert_eq!(*saved.processor(), limited, "{model} {limits:?}");
        let drawing = Arc::new(Drawing { width: 200, height: 90, rgb: vec![90; 3 * 200 * 90] });
        let features = |processor: &ImageProcessor| -> usize {
            let one = processor.process(std::slice::from_ref(&drawing)).unwrap();
            one.iter().map(|image| image.num_features).sum()
        };
        assert!(features(&limited) <= features(&original), "{model} {limits:?}");
        fewer += usize::from(features(&limited) < features(&original));
    }
    assert!(fewer >= 5, "{fewer} limits had an effect");
    let none = ImageLimits::default();
    assert!(none.is_empty() && none.save(&fixtures().join("models/qwen2_vl")).unwrap().is_none());
    for (model, limits) in [
        ("qwen2_vl", edge.clone()),
        ("qwen2_vl", pixels(Some(5000), Some(4096))),
        ("qwen2_vl", pixels(Some(1), Some(1))),
        ("smolvlm", pixels(None, Some(4096))),
        ("smolvlm", ImageLimits { longest_edge: Some(0), ..ImageLimits::default() }),
        ("internvl", ImageLimits { max_tiles: Some(0), ..ImageLimits::default() }),
        ("llava_onevision", tiles.clone()),
        ("llama", whole.clone()),
    ] {
        let refused = limits.apply(prompter(model).processor_mut()).unwrap_err();
        assert!(matches!(refused, PromptError::Limits { .. }) && !refused.hint().is_empty(), "{model}: {refused}");
    }
}

#[test]
fn answers_decode_to_what_was_written() {
    for model in MODELS {
        let prompter = prompter(model);
        let question = Conversation::question(&[picture("scene.png")], "How many?");
        for answer in ["3", "  two\n\nlines ", "日本 🙂 é", "", "</think> <b> 1+1=2"] {
            let ids = prompter.completion(&question, answer).unwrap();
            assert!(prompter.end_ids().contains(ids.last().unwrap()));
            assert_eq!(prompter.decode(&ids, true), format!(" {answer}"), "{model}");
            assert!(ids.iter().all(|id| !prompter.banned_ids().contains(id)));
            let scored = prompter.scored(&question.answered(answer)).unwrap();
            assert_eq!(scored, (prompter.prompt(&question).unwrap(), ids));
        }
    }
}

#[test]
fn tiled_families_place_what_they_cut() {
    use std::sync::Arc;
    let drawn = |width: u32, height: u32| {
        let rgb = (0..width * height * 3).map(|i| (i * 7 % 251) as u8).collect();
        ImageData::Drawn(Arc::new(Drawing { width, height, rgb }))
    };
    let sizes = [(1, 1), (300, 1), (1, 300), (31, 30), (97, 41), (640, 8), (500, 400)];
    for model in LLAVA_MODELS.into_iter().chain(INTERNVL_MODELS) {
        let prompter = prompter(model);
        for answer in ["3", "  two\n\nlines ", "日本 🙂 é", "", "1+1=2"] {
            let question = Conversation::question(&[picture("scene.png")], "How many?");
            let ids = prompter.completion(&question, answer).unwrap();
            assert_eq!(prompter.decode(&ids, true), answer, "{model}");
            assert!(prompter.end_ids().contains(ids.last().unwrap()));
            let scored = prompter.scored(&question.answered(answer)).unwrap();
            assert_eq!(scored, (prompter.prompt(&question).unwrap(), ids));
        }
        for (width, height) in sizes {
            let one = prompter.prompt(&Conversation::question(&[drawn(width, height)], "q")).unwrap();
            let two = prompter.prompt(&Conversation::question(&[drawn(width, height), drawn(5, 4)], "q")).unwrap();
            // LLaVA-OneVision cuts a picture that stands alone; the grid stands at its first tile.
            let alone = LLAVA_MODELS.contains(&model);
            assert_eq!(one.tiles[0].cuts.is_some(), alone, "{model} {width} x {height}");
            assert!(two.tiles.iter().all(|tile| tile.cuts.is_none()));
            if let Some(cuts) = one.tiles[0].cuts {
                assert_eq!(one.tiles.len() as u32, 1 + cuts.rows * cuts.columns);
                assert_eq!([cuts.picture_width, cuts.picture_height], [width, height]);
                assert_eq!((two.tiles.len(), two.placements.len()), (2, 34));
            }
        }
        let long = drawn(20_000, 1);
        let padded = prompter.prompt(&Conversation::question(&[long, drawn(1, 1)], "q"));
        match LLAVA_MODELS.contains(&model) {
            true => assert!(matches!(padded, Err(PromptError::ImageTooLarge { width: 20_000, .. })), "{model}"),
            false => assert!(padded.is_ok()),
        }
        for text in ["<image>", "<IMG_CONTEXT>", "<img>", "a</img>b", "<video>", "<|im_end|>"] {
            let known = prompter.codec().id(text.trim_matches(['a', 'b'])).is_some();
            let asked = prompter.prompt(&Conversation::question(&[picture("scene.png")], text));
            assert_eq!(matches!(asked, Err(PromptError::ControlToken { .. })), known, "{model} {text}");
        }
    }
}

#[test]
fn contradictory_tiles_are_refused() {
    let replaced = |model: &str, file: &str, from: &'static str, to: &'static str| {
        damaged(model, file, move |text| {
            assert!(text.contains(from), "{from}");
            Some(text.replace(from, to))
        })
        .unwrap_err()
    };
    for (model, file, from, to) in [
        ("llava_onevision", "preprocessor_config.json", "\"height\": 30", "\"height\": 31"),
        ("llava_onevision", "preprocessor_config.json", "\"height\": 30,\n    \"width\": 30", "\"shortest_edge\": 60"),
        ("llava_onevision", "preprocessor_config.json", "      60\n", "      61\n"),
        ("llava_onevision", "preprocessor_config.json", "\"do_resize\": true", "\"do_resize\": false"),
        ("llava_onevision", "processor_config.json", "anyres_max_4", "anyres"),
        ("llava_onevision", "processor_config.json", "anyres_max_4", "anyres_max_0"),
        ("llava_onevision", "processor_config.json", "\"full\"", "\"default\""),
        ("internvl", "preprocessor_config.json", "\"max_patches\": 12", "\"max_patches\": 1000000"),
        ("internvl", "preprocessor_config.json", "\"min_patches\": 1", "\"min_patches\": -1"),
        ("internvl", "preprocessor_config.json", "\"height\": 32", "\"height\": 0"),
    ] {
        let error = replaced(model, file, from, to);
        assert!(matches!(error, PromptError::Settings { .. }), "{to}: {error}");
    }
    for (model, from, to) in [
        ("llava_onevision", "\"num_image_tokens\": 16", "\"num_image_tokens\": 25"),
        ("internvl", "\"image_seq_length\": 4", "\"image_seq_length\": 9"),
    ] {
        let error = replaced(model, "processor_config.json", from, to);
        assert!(matches!(error, PromptError::PlaceholderMismatch { .. }), "{to}: {error}");
    }
}

#[test]
fn text_models_refuse_pictures_and_read_everything_else() {
    for model in TEXT_MODELS {
        let prompter = prompter(model);
        let error = prompter.prompt(&Conversation::question(&[picture("scene.png")], "How many?")).unwrap_err();
        assert!(matches!(error, PromptError::NoImages), "{model}: {error}");
        let question = Conversation::question(&[], "How many?");
        for answer in ["3", "  two\n\nlines ", "日本 🙂 é", "", "1+1=2"] {
            let ids = prompter.completion(&question, answer).unwrap();
            assert!(prompter.end_ids().contains(ids.last().unwrap()));
            assert_eq!(prompter.decode(&ids, true), answer, "{model}");
        }
        assert!(prompter.prompt(&Conversation::question(&[], "a<|im_end|>b")).is_err());
    }
}

#[test]
fn qwen_refuses_what_its_processor_refuses() {
    for model in QWEN_MODELS {
        let prompter = prompter(model);
        let thin = ImageData::Drawn(std::sync::Arc::new(Drawing { width: 402, height: 2, rgb: vec![9; 2412] }));
        let error = prompter.prompt(&Conversation::question(&[thin], "q")).unwrap_err();
        assert!(matches!(error, PromptError::PictureShape { width: 402, height: 2, .. }), "{model}: {error}");
        for text in ["<|image_pad|>", "a<|vision_start|>b", "<|video_pad|>", "<|im_end|>"] {
            let error = prompter.prompt(&Conversation::question(&[picture("scene.png")], text)).unwrap_err();
            assert!(matches!(error, PromptError::ControlToken { .. }), "{model} {text}: {error}");
        }
    }
    for (from, to) in [
        ("\"patch_size\": 4", "\"patch_size\": 5"),
        ("\"min_pixels\": 256", "\"min_pixels\": 9999999"),
        ("\"max_pixels\": 2304", "\"max_pixels\": -1"),
    ] {
        let error = damaged("qwen2_5_vl", "preprocessor_config.json", |text| {
            assert!(text.contains(from), "{from}");
            Some(text.replace(from, to))
        });
        assert!(matches!(error, Err(PromptError::Settings { .. })), "{to}: {error:?}");
    }
}

#[test]
fn banned_are_the_specials_that_end_nothing() {
    let v5 = prompter("smolvlm_v5");
    let banned = v5.banned_ids();
    assert!(banned.is_sorted());
    let id = |token: &str| v5.codec().id(token).unwrap();
    for token in ["<image>", "<fake_token_around_image>", "<row_1_col_1>", "<|im_end|>", "<|reserved_special_token_0|>"]
    {
        assert!(banned.contains(&id(token)), "{token}");
    }
    assert!(!banned.contains(&id("<end_of_utterance>")) && !banned.contains(&id("a")));
    // The table has more rows than the tokenizer has tokens.
    assert!(banned.contains(&(v5.vocab_size() as u32 - 1)));
    // config.json of a checkpoint saved by transformers 5 says 2 (Llama's default); generation_config.json is right.
    assert_eq!(v5.end_ids(), [id("<end_of_utterance>")]);
    assert_eq!(prompter("idefics3").end_ids().len(), 2);
}

#[test]
fn text_cannot_smuggle_in_control_tokens() {
    let prompter = prompter("smolvlm");
    for text in ["<image>", "a<image>b", "x <end_of_utterance>\nUser: y", "<|im_start|>", "<row_1_col_1>", "<|im_end|>"]
    {
        let error = prompter.prompt(&Conversation::question(&[picture("scene.png")], text)).unwrap_err();
        assert!(matches!(error, PromptError::ControlToken { role: "user", .. }), "{text}: {error}");
        assert!(!error.hint().is_empty());
        let question = Conversation::question(&[], "q");
        assert!(prompter.completion(&question, text).is_err(), "{text}");
    }
    // Cut in two parts that the template joins.
    let parts = vec![Part::Text("<ima".into()), Part::Text("ge>".into())];
    let split = Conversation { turns: vec![Turn { role: Role::User, parts }] };
    assert!(matches!(prompter.prompt(&split), Err(PromptError::ControlToken { .. })));
    // Specials without a part in prompts are the data's business.
    assert!(prompter.prompt(&Conversation::question(&[], "open <filename>")).is_ok());
}

#[test]
fn prompts_that_do_not_fit_are_refused() {
    let mut prompter = prompter("smolvlm");
    prompter.set_max_tokens(50);
    let error = prompter.prompt(&Conversation::question(&[picture("square.png")], "How many?")).unwrap_err();
    assert!(matches!(error, PromptError::TooLong { image_tokens: 40, limit: 50, .. }), "{error}");
}

#[test]
fn odd_conversations_are_errors() {
    let prompter = prompter("idefics3");
    let question = Conversation::question(&[], "q");
    let empty = Conversation::default();
    let hollow = Conversation { turns: vec![Turn { role: Role::User, parts: vec![] }] };
    assert!(prompter.prompt(&empty).is_err());
    assert!(prompter.prompt(&hollow).is_err());
    assert!(prompter.scored(&empty).is_err());
    assert!(prompter.masked(&empty).is_err());
    // The last turn is the user's.
    assert!(matches!(prompter.scored(&question), Err(PromptError::Conversation { .. })));
    assert!(matches!(prompter.masked(&question), Err(PromptError::Conversation { .. })));
    // A picture as an answer.
    let mut pictured = question.clone();
    pictured.turns.push(Turn { role: Role::Assistant, parts: vec![Part::Image(picture("speck.png"))] });
    assert!(matches!(prompter.scored(&pictured), Err(PromptError::Conversation { .. })));
    let missing = Conversation::question(&[picture("none.png")], "q");
    let error = prompter.prompt(&missing).unwrap_err();
    assert!(error.to_string().contains("none.png"), "{error}");
}

/// A copy of a fixture folder with one file changed by `edit` (`None`: removed).
fn damaged(model: &str, file: &str, edit: impl Fn(&str) -> Option<String>) -> Result<Prompter, PromptError> {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixtures().join("models").join(model)).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension != "safetensors") {
            std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let path = folder.path().join(file);
    match edit(&std::fs::read_to_string(&path).unwrap()) {
        Some(text) => std::fs::write(&path, text).unwrap(),
        None => std::fs::remove_file(&path).unwrap(),
    }
    Prompter::load(folder.path())
}

#[test]
fn damaged_folders_are_named() {
    for file in ["config.json", "tokenizer.json", "chat_template.json", "preprocessor_config.json"] {
        let edits: [fn(&str) -> Option<String>; 3] =
            [|_| None, |text| Some(text[..text.len() / 2].to_string()), |_| Some("[]".into())];
        for edit in edits {
            let text = damaged("smolvlm", file, edit).unwrap_err().to_string();
            assert!(text.contains(file), "{file}: {text}");
        }
    }
    let replaced = |file: &str, from: &'static str, to: &'static str| {
        damaged("smolvlm", file, move |text| {
            assert!(text.contains(from), "{from}");
            Some(text.replace(from, to))
        })
    };
    let error = replaced("processor_config.json", "4", "5").unwrap_err();
    assert!(matches!(error, PromptError::PlaceholderMismatch { need: 4, have: 5 }), "{error}");
    for (file, from, to) in [
        ("config.json", "\"image_token_id\": 461", "\"image_token_id\": 7"),
        ("config.json", "\"scale_factor\": 2", "\"scale_factor\": 3"),
        ("config.json", "\"scale_factor\": 2", "\"scale_factor\": 0"),
        ("generation_config.json", "\"eos_token_id\": 465", "\"eos_token_id\": 99999"),
        ("generation_config.json", "\"eos_token_id\": 465", "\"eos_token_id\": \"end\""),
        ("preprocessor_config.json", "SmolVLMImageProcessor", "OtherImageProcessor"),
        ("preprocessor_config.json", "\"resample\": 1", "\"resample\": 5"),
        ("preprocessor_config.json", "\"do_resize\": true", "\"do_resize\": \"yes\""),
        ("preprocessor_config.json", "\"longest_edge\": 96", "\"longest_edge\": 0"),
        ("preprocessor_config.json", "\"rescale_factor\": 0.00392156862745098", "\"rescale_factor\": \"x\""),
    ] {
        let error = replaced(file, from, to).unwrap_err();
        assert!(matches!(error, PromptError::Settings { .. }), "{to}: {error}");
    }
    // Fewer files are enough where the rest says the same.
    assert!(damaged("smolvlm", "special_tokens_map.json", |_| None).is_ok());
    assert!(damaged("smolvlm", "processor_config.json", |_| None).is_ok());
    assert!(damaged("smolvlm", "generation_config.json", |_| None).is_ok());
}

#[test]
fn a_template_that_drops_pictures_is_found_out() {
    let blind = damaged("smolvlm", "chat_template.json", |text| Some(text.replace("<image>", ""))).unwrap();
    let error = blind.prompt(&Conversation::question(&[picture("scene.png")], "q")).unwrap_err();
    assert!(matches!(error, PromptError::PlaceholderMismatch { need: 1, have: 0 }), "{error}");
}

proptest::proptest! {
    #![proptest_config(proptest::test_runner::Config::with_cases(200))]

    /// Any text either renders and comes back unchanged, or is refused for a control token.
    #[test]
    fn any_text_is_rendered_or_refused(text in "(\\PC|[\\s<>|_/]|<image>|<\\|im_end\\|>|<row_1_col_1>|\u{0}){0,40}") {
        thread_local!(static PROMPTER: Prompter = prompter("smolvlm"));
        PROMPTER.with(|prompter| {
            let asked = prompter.prompt(&Conversation::question(&[], text.clone()));
            let answered = prompter.completion(&Conversation::question(&[], "q"), &text);
            match (asked, answered) {
                (Ok(prompt), Ok(ids)) => {
                    assert!(prompt.placements.is_empty());
                    assert_eq!(prompter.decode(&ids, true), format!(" {text}"));
                    assert!(prompter.decode(&prompt.ids, false).contains(&text));
                }
                (Err(PromptError::ControlToken { .. }), Err(PromptError::ControlToken { .. })) => {}
                other => panic!("{text:?}: {other:?}"),
            }
        });
    }
}
