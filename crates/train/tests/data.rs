//! The room `data`: same seed, same order; resume in mid-epoch; bad rows named by file, line and field; what is
//! written is read back; overlap and contradictions are found.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use foveate_train::data::{
    Amount, Answer, DataError, DataSource, Dataset, Format, ImageData, OnBadRow, Order, Quality, Questions, Row,
    Sources, Take, World, audit, make, open, overlap, write_rows,
};

fn one(source: DataSource) -> Sources {
    Sources(vec![source])
}

fn rows_of(dataset: &Dataset) -> Vec<Row> {
    (0..dataset.len()).map(|index| dataset.row(index)).collect()
}

/// A folder with `rows.jsonl` of the given lines and a small picture `a.png`.
fn folder(lines: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("rows.jsonl"), lines.join("\n")).unwrap();
    let drawing = foveate_train::data::Drawing { width: 2, height: 2, rgb: vec![200; 12] };
    fs::write(folder.path().join("a.png"), foveate_train::data::write::png(&drawing)).unwrap();
    folder
}

fn open_file(folder: &Path, source: DataSource) -> Result<Dataset, DataError> {
    open(&one(source), folder, 7)
}

fn jsonl() -> DataSource {
    DataSource::file("rows.jsonl")
}

#[test]
fn a_file_of_our_own_form_is_read() {
    let folder = folder(&[
        r#"{"id": "x", "images": ["a.png"], "question": "How many?", "answer": {"type": "number", "value": "3"}, "rationale": "1, 2, 3.", "facts": "three", "task": "t", "split": "train", "level": 2, "meta": {"k": 1}, "author": "me"}"#,
        "",
        r#"{"image": "a.png", "problem": "Which?", "answer": "B", "options": ["cat", "dog"], "cot": "<think>A dog.</think>"}"#,
        r#"{"question": "Which?", "direct_answers": ["cat", "kitten"]}"#,
        r#"{"question": "How many?", "solution": "<answer> 4 </answer>"}"#,
    ]);
    let dataset = open_file(folder.path(), jsonl()).unwrap();
    let rows = rows_of(&dataset);
    assert_eq!(rows[0].answer, Answer::Number("3".into()));
    assert_eq!((rows[0].level, rows[0].split.as_str(), rows[0].task.as_str()), (2, "train", "t"));
    assert_eq!((rows[0].meta["k"].as_i64(), rows[0].meta["author"].as_str()), (Some(1), Some("me")));
    assert_eq!(rows[0].images, [ImageData::Path(folder.path().join("a.png"))]);
    assert_eq!((rows[1].id.as_str(), rows[1].task.as_str(), rows[1].rationale.as_str()), ("rows:3", "rows", "A dog."));
    assert_eq!(rows[1].answer, Answer::Choice(vec!["B".into()]));
    assert_eq!(rows[2].answer, Answer::Member(vec!["cat".into(), "kitten".into()]));
    assert_eq!(rows[3].answer, Answer::Number("4".into()));
}

#[test]
fn conversations_are_read_from_jsonl_and_from_arrays() {
    let folder = folder(&[
        r#"{"messages": [{"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many?"}]}, {"role": "assistant", "content": "I see 2.\nAnswer: 2"}]}"#,
    ]);
    let rows = rows_of(&open_file(folder.path(), jsonl()).unwrap());
    assert_eq!((rows[0].rationale.as_str(), &rows[0].answer), ("I see 2.", &Answer::Number("2".into())));
    assert_eq!(rows[0].images.len(), 1);
    let llava = r#"[{"id": "7", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "A gray square."},
        {"from": "human", "value": "Is it red?"}, {"from": "gpt", "value": "No."}]}]"#;
    fs::write(folder.path().join("llava.json"), llava).unwrap();
    let rows = rows_of(&open_file(folder.path(), DataSource::file("llava.json")).unwrap());
    assert_eq!((rows[0].id.as_str(), rows[0].question.as_str()), ("7#1", "What is it?"));
    assert_eq!((rows[1].id.as_str(), &rows[1].answer), ("7#2", &Answer::YesNo(false)));
}

#[test]
fn what_stands_beside_a_conversation_comes_along() {
    let turns = r#""conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "3"}]"#;
    let own = r#""messages": [{"role": "system", "content": "Own."}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]"#;
    let folder = folder(&[
        &format!(r#"{{{turns}, "system": "Be brief.", "source": "web"}}"#),
        &format!(r#"{{{own}, "system": "Be brief."}}"#),
    ]);
    let rows = rows_of(&open_file(folder.path(), jsonl()).unwrap());
    assert_eq!((&rows[0].meta["system"], &rows[0].meta["source"]), (&"Be brief.".into(), &"web".into()));
    assert!(!rows[0].meta.contains_key("conversations"), "{:?}", rows[0].meta);
    assert_eq!(rows[1].meta["system"], "Own.", "what the turns say counts");
}

#[test]
fn images_may_stand_in_the_row_itself() {
    let png = foveate_train::data::write::png(&foveate_train::data::Drawing { width: 1, height: 1, rgb: vec![0; 3] });
    // The encoder's counterpart is only needed here.
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let code: String = png
        .chunks(3)
        .flat_map(|chunk| {
            let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
            (0..=chunk.len()).map(move |i| char::from(alphabet[(bits >> (18 - 6 * i)) as usize & 63]))
        })
        .collect();
    let line = format!(r#"{{"question": "q", "answer": "a", "image": "data:image/png;base64,{code}"}}"#);
    let folder = folder(&[&line]);
    let rows = rows_of(&open_file(folder.path(), jsonl()).unwrap());
    assert!(matches!(&rows[0].images[0], ImageData::Encoded(bytes) if bytes[..] == png[..]));
}

/// Each line, the field that is named, and a word of the hint or message.
#[test]
fn bad_rows_are_named_by_file_line_and_field() {
    let cases = [
        (r#"{"question": "q""#, "", "not JSON"),
        (r#"[1]"#, "", "must be a JSON object"),
        (r#"{"question": "q", "anser": "3"}"#, "answer", "did you mean `answer`"),
        (r#"{"answer": "3"}"#, "question", "missing"),
        (
            r#"{"text": "q", "answer": "3"}"#,
            "question",
            "has `text`, `answer`; say which one is meant: fields = { question",
        ),
        (r#"{"question": "", "answer": "3"}"#, "question", "empty"),
        (r#"{"question": 3, "answer": "3"}"#, "question", "not text"),
        (r#"{"question": "q", "answer": null}"#, "answer", "missing"),
        (r#"{"question": "q", "answer": {"type": "nmber", "value": "3"}}"#, "answer", "types are number"),
        (r#"{"question": "q", "answer": {"type": "choice", "value": ["B"]}}"#, "answer", "no `choices`"),
        (r#"{"question": "q", "answer": "3", "answer_type": "digit"}"#, "answer_type", "types are"),
        (r#"{"question": "q", "answer": "3", "choices": "a, b"}"#, "choices", "not a list"),
        (r#"{"question": "q", "answer": "3", "image": "b.png"}"#, "image", "b.png"),
        (r#"{"question": "q", "answer": "3", "images": ["a.png", "rows.jsonl"]}"#, "images[1]", "rows.jsonl"),
        (r#"{"question": "q", "answer": "3", "image": "https://example.com/a.png"}"#, "image", "not a local file"),
        (r#"{"question": "q", "answer": "3", "image": "data:image/png;base64,@"}"#, "image", "not base64"),
        (r#"{"question": "q", "answer": "3", "level": -1}"#, "level", "whole number"),
        (r#"{"question": "q", "answer": "3", "id": []}"#, "id", "neither text nor a number"),
        (r#"{"question": "q", "answer": "3", "id": "one"}"#, "id", "already"),
        (r#"{"messages": [{"role": "user", "content": "q"}]}"#, "messages", "no answered question"),
    ];
    for (line, field, told) in cases {
        let good = r#"{"id": "one", "question": "q", "answer": "a"}"#;
        let folder = folder(&[good, line]);
        let error = open_file(folder.path(), jsonl()).unwrap_err();
        let text = format!("{error} {}", error.hint().unwrap());
        assert!(text.contains("rows.jsonl:2: ") && text.contains(told), "{line}\n{text}");
        assert!(matches!(&error, DataError::Row { field: named, .. } if named == field), "{line}\n{error:?}");

        let dataset = open_file(folder.path(), DataSource { on_bad_row: OnBadRow::Skip, ..jsonl() }).unwrap();
        assert_eq!((dataset.len(), dataset.skipped().len()), (1, 1));
        assert!(dataset.skipped()[0].reason.contains("rows.jsonl:2"));
    }
}

#[test]
fn a_corrupt_image_is_named_with_its_row() {
    let folder = folder(&[r#"{"question": "q", "answer": "3", "image": "a.png"}"#]);
    fs::write(folder.path().join("a.png"), b"\x89PNG\r\n\x1a\n cut").unwrap();
    let error = open_file(folder.path(), jsonl()).unwrap_err().to_string();
    assert!(error.contains("rows.jsonl:1: field `image`: image ") && error.contains("a.png"), "{error}");
}

#[test]
fn sources_that_make_no_sense_are_refused_with_a_hint() {
    let folder = folder(&[r#"{"question": "q", "answer": "3", "split": "a"}"#]);
    let world = || DataSource::world(World::Charts, "train", 10);
    let cases = [
        DataSource::default(),
        DataSource { path: Some("rows.jsonl".into()), ..world() },
        DataSource { split: Some("test".into()), ..world() },
        DataSource { levels: Some(vec![7]), ..world() },
        DataSource { levels: Some(vec![]), ..world() },
        DataSource { size: Some(3), ..world() },
        DataSource { rows: Some(0), ..world() },
        DataSource { skip: Amount::Rows(10), ..world() },
        DataSource { rows: Some(3), ..jsonl() },
        DataSource { rationale: Some(Quality::High), ..jsonl() },
        DataSource { split: Some("b".into()), ..jsonl() },
        DataSource {
            format: Format::Choice,
            answer_type: Some(foveate_train::data::answer::AnswerType::Text),
            ..jsonl()
        },
        DataSource::file("absent.jsonl"),
        DataSource::file("rows.parquet"),
    ];
    for source in cases {
        let shown = format!("{source:?}");
        let error = open_file(folder.path(), source).expect_err(&shown);
        assert!(error.hint().is_some_and(|hint| !hint.is_empty()), "{error}");
    }
    assert!(open(&Sources::default(), folder.path(), 0).is_err());
    fs::write(folder.path().join("rows.jsonl"), "").unwrap();
    assert!(matches!(open_file(folder.path(), jsonl()), Err(DataError::Empty { .. })));
    fs::write(folder.path().join("rows.jsonl"), b"{}\n\xff\n").unwrap();
    assert!(open_file(folder.path(), jsonl()).unwrap_err().to_string().contains("rows.jsonl:2: the text is not UTF-8"));
}

#[test]
fn rows_are_picked_by_skip_and_take() {
    let lines: Vec<String> = (0..20).map(|i| format!(r#"{{"id": {i}, "question": "q{i}", "answer": {i}}}"#)).collect();
    let folder = folder(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let ids = |skip, take| -> Vec<u32> {
        let source = DataSource { skip, take, ..jsonl() };
        rows_of(&open_file(folder.path(), source).unwrap()).iter().map(|row| row.id.parse().unwrap()).collect()
    };
    assert_eq!(ids(Amount::Rows(0), Take::First(Amount::Percent(10.0))), [0, 1]);
    assert_eq!(ids(Amount::Rows(16), Take::All), [16, 17, 18, 19]);
    assert_eq!(ids(Amount::Percent(50.0), Take::End(Amount::Rows(2))), [18, 19]);
    let random = ids(Amount::Rows(10), Take::Random(Amount::Rows(5)));
    assert_eq!(random, ids(Amount::Rows(10), Take::Random(Amount::Rows(5))));
    assert!(random.len() == 5 && random.windows(2).all(|pair| pair[0] < pair[1]) && random[0] >= 10);
    assert_ne!(random, [10, 11, 12, 13, 14]);

    let world = DataSource {
        skip: Amount::Rows(3),
        take: Take::First(Amount::Rows(2)),
        ..DataSource::world(World::Counting, "id", 10)
    };
    let some = rows_of(&open(&one(world), folder.path(), 7).unwrap());
    let all = rows_of(&open(&one(DataSource::world(World::Counting, "id", 10)), folder.path(), 7).unwrap());
    assert_eq!(some, all[3..5]);
}

#[test]
fn a_file_is_asked_in_other_forms() {
    let lines: Vec<String> = (0..40)
        .map(|i| format!(r#"{{"id": {i}, "question": "Which?", "answer": "word{}"}}"#, i % 6))
        .chain([r#"{"id": "only", "question": "n?", "answer": 5}"#.to_string()])
        .collect();
    let folder = folder(&lines.iter().map(String::as_str).collect::<Vec<_>>());
    let choice = open_file(folder.path(), DataSource { format: Format::Choice, ..jsonl() }).unwrap();
    assert!(rows_of(&choice).iter().all(|row| row.choices.len() == 4 && matches!(row.answer, Answer::Choice(_))));
    let judge = rows_of(&open_file(folder.path(), DataSource { format: Format::Judge, ..jsonl() }).unwrap());
    assert_eq!(judge[..40].iter().filter(|row| row.answer == Answer::YesNo(true)).count(), 20);
    assert!(overlap(&choice, &open_file(folder.path(), jsonl()).unwrap()).len() == 41);
}

#[test]
fn questions_resume_in_mid_epoch() {
    let dataset = Arc::new(open(&one(DataSource::world(World::Charts, "train", 10)), Path::new(""), 7).unwrap());
    let order = Order::shuffled(dataset.len(), 7, 0);
    let mut whole = Questions::new(dataset.clone(), order);
    let expected: Vec<_> = (0..5).flat_map(|_| whole.next_batch(3)).map(|q| (q.position, q.index, q.row)).collect();
    assert_eq!((whole.position(), whole.epochs()), (15, 1.5));
    let mut resumed = Questions::new(dataset, order);
    resumed.seek(6);
    let rest: Vec<_> = (0..3).flat_map(|_| resumed.next_batch(3)).map(|q| (q.position, q.index, q.row)).collect();
    assert_eq!(rest, expected[6..]);
    let first: BTreeSet<usize> = expected[..10].iter().map(|(_, index, _)| *index).collect();
    assert_eq!(first.len(), 10);
}

#[test]
fn what_is_made_is_read_back() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("deep/set");
    let sources = Sources(vec![
        DataSource { rationale: Some(Quality::High), ..DataSource::world(World::Counting, "train", 5) },
        DataSource { format: Format::Choice, ..DataSource::world(World::Charts, "ood", 4) },
    ]);
    let made = open(&sources, place.path(), 3).unwrap();
    make(&made, &folder).unwrap();
    let read = open(&one(DataSource::file(&folder)), place.path(), 0).unwrap();
    assert_eq!(read.len(), 9);
    for index in 0..9 {
        let (mut drawn, mut stored) = (made.row(index), read.row(index));
        let (ImageData::Drawn(drawing), ImageData::Path(path)) = (&drawn.images[0], &stored.images[0]) else {
            panic!("{:?}", stored.images)
        };
        assert_eq!(image::open(path).unwrap().to_rgb8().into_raw(), drawing.rgb);
        drawn.images.clear();
        stored.images.clear();
        assert_eq!(drawn, stored);
    }
    assert_eq!(overlap(&made, &read).len(), 9);
    // Nothing is overwritten, nothing is left beside it.
    assert!(matches!(make(&made, &folder), Err(DataError::Source { .. })));
    assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
    // Same bytes again.
    let again = place.path().join("again");
    make(&made, &again).unwrap();
    for name in ["rows.jsonl", "images/000008.png"] {
        assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(again.join(name)).unwrap());
    }
    // Rows of files keep naming their pictures where they are; drawn ones get files.
    let mut rows = rows_of(&read);
    rows.extend(rows_of(&made).into_iter().map(|row| Row { id: format!("{}-drawn", row.id), ..row }));
    let file = place.path().join("picked.jsonl");
    write_rows(&rows, &file).unwrap();
    let picked = open(&one(DataSource::file(&file)), Path::new(""), 0).unwrap();
    assert_eq!(picked.len(), 18);
    assert!(fs::read_to_string(&file).unwrap().contains("\"deep/set/images/000000.png\""));
}

#[test]
fn a_failed_write_leaves_nothing_half_done() {
    let place = tempfile::tempdir().unwrap();
    let missing = Row { images: vec![ImageData::Path(place.path().join("gone.png"))], ..row("a", "q", "1", "") };
    let folder = place.path().join("set");
    assert!(matches!(make(&Dataset::from_rows(vec![missing]), &folder), Err(DataError::File { .. })));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
}

fn row(id: &str, question: &str, answer: &str, rationale: &str) -> Row {
    Row {
        id: id.into(),
        images: vec![],
        question: question.into(),
        answer: Answer::Number(answer.into()),
        choices: vec![],
        rationale: rationale.into(),
        facts: String::new(),
        task: "t".into(),
        split: String::new(),
        level: 0,
        meta: Default::default(),
    }
}

#[test]
fn an_audit_finds_what_is_wrong() {
    let broken = Row { images: vec![ImageData::Encoded(Arc::from(&b"no image"[..]))], ..row("e", "z", "1", "") };
    let rows = vec![
        row("a", "How many?", "5", "2 + 3 = 5."),
        row("b", " how MANY ", "5", "2 + 3 = 6."),
        row("c", "Other?", "7", ""),
        row("d", "1 + 2?", "3.0", "so 3."),
        broken,
    ];
    let dataset = Dataset::from_rows(rows);
    let found = audit(&dataset);
    assert_eq!(found.duplicates, [("a".to_string(), "b".to_string())]);
    assert_eq!(found.contradictions, [("b".to_string(), "6".to_string())]);
    assert_eq!(found.unreadable.len(), 1);
    assert_eq!((found.num_without_rationale, found.most_frequent.0.as_str()), (2, "5"));
    assert!(found.to_string().contains("duplicates: 1\n  a: b"));
    let test = Dataset::from_rows(vec![row("x", "other", "7", ""), row("y", "1 - 2?", "3", "")]);
    let shared = overlap(&dataset, &test);
    assert_eq!((shared.len(), shared[0].train.as_str(), shared[0].test.as_str()), (1, "c", "x"));
}

#[test]
fn the_worlds_pass_their_audit() {
    for &world in World::ALL {
        let rows = |split, rows, format| {
            let source = DataSource { format, rationale: Some(Quality::Low), ..DataSource::world(world, split, rows) };
            open(&one(source), Path::new(""), 7).unwrap()
        };
        let train = rows("train", 1500, Format::Open);
        let found = audit(&train);
        assert!(found.contradictions.is_empty() && found.duplicates.is_empty(), "{found}");
        for split in ["id", "ood"] {
            assert_eq!(overlap(&train, &rows(split, 500, Format::Open)), []);
        }
        assert!(!overlap(&train, &rows("train", 300, Format::Judge)).is_empty());
        assert!(audit(&rows("train", 400, Format::Choice)).letters.values().all(|share| (0.1..0.4).contains(share)));
    }
}

proptest::proptest! {
    /// Files are hostile input: whatever stands in a line, reading ends in rows or in an error.
    #[test]
    fn no_line_makes_the_reader_panic(text in "\\PC{0,60}", key in "(question|answer|choices|images|messages|level|meta|id)") {
        let quoted = serde_json::Value::String(text.clone()).to_string();
        let lines = [
            text.clone(),
            format!(r#"{{"question": "q", "answer": {quoted}}}"#),
            format!(r#"{{"question": "q", "answer": "A", "choices": ["x", {quoted}]}}"#),
            format!(r#"{{"question": {quoted}, "answer": 3, "rationale": {quoted}, "{key}": {quoted}}}"#),
            format!(r#"{{"messages": [{{"role": "user", "content": {quoted}}}, {{"role": "assistant", "content": {quoted}}}]}}"#),
        ];
        for kind in ["number", "labels", "box", "choice", "functions", "yes_no", "member", "expression", "text"] {
            let declared = foveate_train::data::answer::AnswerType::named(kind);
            let value = serde_json::Value::String(text.clone());
            let _ = foveate_train::data::answer::typed(&value, declared, &["a".into(), "b".into()]);
        }
        let folder = folder(&lines.iter().map(String::as_str).collect::<Vec<_>>());
        for format in [Format::Open, Format::Choice, Format::Judge] {
            if let Ok(dataset) = open_file(folder.path(), DataSource { on_bad_row: OnBadRow::Skip, format, ..jsonl() }) {
                let _ = audit(&dataset).to_string();
            }
        }
    }
}

#[test]
fn earlier_turns_come_along_and_every_form_is_read_back() {
    use foveate_train::ask::AskConfig;
    use foveate_train::data::{Form, convert};
    use foveate_train::prompt::{Part, Role};

    let folder = folder(&[
        r#"{"id": "x", "messages": [{"role": "system", "content": "Be short."}, {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "What is it?"}]}, {"role": "assistant", "content": "A square."}, {"role": "user", "content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "How many now?"}]}, {"role": "assistant", "content": "One and one.\nAnswer: 2"}]}"#,
        r#"{"id": "y", "question": "How many?", "answer": 3}"#,
    ]);
    let here = folder.path();
    let rows = rows_of(&open_file(here, jsonl()).unwrap());
    assert_eq!(rows.len(), 3);
    let conversation = AskConfig::default().conversation(&rows[1]);
    let roles: Vec<Role> = conversation.turns.iter().map(|turn| turn.role).collect();
    assert_eq!(roles, [Role::System, Role::User, Role::Assistant, Role::User]);
    let pictures =
        |turn: usize| conversation.turns[turn].parts.iter().filter(|part| matches!(part, Part::Image(_))).count();
    assert_eq!((pictures(1), pictures(2), pictures(3)), (1, 0, 1));
    assert_eq!(conversation.turns[2].parts, [Part::Text("A square.".into())]);
    let own = AskConfig { system: "Think.".into(), ..AskConfig::default() };
    assert_eq!(own.conversation(&rows[1]).turns[0].parts, [Part::Text("Think.".into())]);
    assert_eq!(AskConfig::default().conversation(&rows[2]).turns.len(), 1);

    for form in [Form::Rows, Form::Messages, Form::Llava] {
        let out = here.join(format!("{form:?}"));
        convert(&open_file(here, jsonl()).unwrap(), &out, form).unwrap();
        let back = rows_of(&open_file(&out, DataSource::file(form.file())).unwrap());
        // A conversation of two exchanges is read back as two rows, the first of which was a row of its own already.
        let expected: &[usize] = if form == Form::Rows { &[0, 1, 2] } else { &[0, 0, 1, 2] };
        assert_eq!(back.len(), expected.len(), "{form:?}");
        for (row, &index) in back.iter().zip(expected) {
            assert_eq!((&row.question, &row.answer), (&rows[index].question, &rows[index].answer), "{form:?}");
            assert_eq!(row.images.len(), rows[index].images.len(), "{form:?}");
        }
        // All exchanges show the same file, which is there once.
        assert_eq!(fs::read_dir(out.join("images")).unwrap().count(), 1, "{form:?}");
        let text = fs::read_to_string(out.join(form.file())).unwrap();
        assert!(text.contains("A square.") && text.contains("Be short."), "{form:?}: {text}");
        assert!(!text.contains(&here.display().to_string()), "paths are relative: {text}");
    }
}

#[test]
fn copies_of_pictures_are_found_by_their_looks() {
    let folder = folder(&[]);
    let here = folder.path();
    let picture = |shift: u32, side: u32| {
        image::RgbImage::from_fn(side, side, |x, y| {
            let (x, y) = (x as f32 / side as f32, y as f32 / side as f32);
            let wave = (6.0 * x + shift as f32).sin() + (4.0 * y * (1.0 + shift as f32) - x).cos();
            image::Rgb([(127.0 + 60.0 * wave) as u8, (90.0 + 40.0 * wave) as u8, 80])
        })
    };
    picture(0, 96).save(here.join("one.png")).unwrap();
    picture(0, 64).save(here.join("smaller.png")).unwrap();
    picture(2, 96).save(here.join("other.png")).unwrap();
    let line = |id: &str| format!(r#"{{"id": "{id}", "image": "{id}.png", "question": "What?", "answer": "x"}}"#);
    let lines = [line("one"), line("other"), line("smaller")];
    fs::write(here.join("rows.jsonl"), lines.join("\n")).unwrap();
    let found = audit(&open_file(here, jsonl()).unwrap());
    assert_eq!(found.look_alikes, [("one".to_string(), "smaller".to_string())]);
    assert!(found.duplicates.is_empty());
    assert!(found.to_string().contains("pictures that look alike: 1"));

    // A copy is an overlap where it is asked the same and answered the same.
    let of = |id: &str, question: &str, answer: &str| Row {
        images: vec![ImageData::Path(here.join(format!("{id}.png")))],
        ..row(id, question, answer, "")
    };
    let train = Dataset::from_rows(vec![of("one", "What?", "x"), of("other", "What?", "x")]);
    let pairs = |test: Row| -> Vec<(String, bool)> {
        let found = overlap(&train, &Dataset::from_rows(vec![test]));
        found.into_iter().map(|pair| (pair.train, pair.by_looks)).collect()
    };
    assert_eq!(pairs(of("smaller", " what", "x")), [("one".to_string(), true)]);
    assert_eq!(pairs(of("one", "What?", "y")), [("one".to_string(), false)]);
    assert_eq!(pairs(of("smaller", "Who?", "x")), []);
    assert_eq!(pairs(of("smaller", "What?", "y")), []);
}
