//! Parquet files as `datasets` and `pyarrow` write them (`fixtures/parquet`, made by `tools/fixture_parquet.py`): every
//! value, rows with pictures, splits, other forms written from them; damaged files are refused and never panic.

use std::fs;
use std::path::{Path, PathBuf};

use foveate_train::data::parquet::{self, ATTACHED, Record, Unreadable};
use foveate_train::data::{
    Answer, DataError, DataSource, Dataset, Form, ImageData, OnBadRow, Row, Sources, audit, convert, open,
};
use serde_json::{Value, json};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/parquet")
}

fn source(path: &str, split: Option<&str>) -> DataSource {
    DataSource { split: split.map(str::to_string), ..DataSource::file(path) }
}

fn open_one(base: &Path, source: DataSource) -> Result<Dataset, DataError> {
    open(&Sources(vec![source]), base, 0)
}

fn rows_of(dataset: &Dataset) -> Vec<Row> {
    (0..dataset.len()).map(|index| dataset.row(index)).collect()
}

/// Bytes as hexadecimal digits, as the fixtures have them.
fn shown(value: Value, record: &Record) -> Value {
    match value {
        Value::Object(fields) if fields.contains_key(ATTACHED) => {
            let bytes = &record.attached[fields[ATTACHED].as_u64().unwrap() as usize];
            let digits: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            json!({ "bytes": digits })
        }
        Value::Object(fields) => {
            Value::Object(fields.into_iter().map(|(name, value)| (name, shown(value, record))).collect())
        }
        Value::Array(entries) => Value::Array(entries.into_iter().map(|entry| shown(entry, record)).collect()),
        other => other,
    }
}

fn read_all(path: &Path) -> Result<Vec<Value>, Unreadable> {
    let mut rows = vec![];
    parquet::read(path, |_, record| -> Result<(), Unreadable> {
        rows.push(shown(Value::Object(record.fields.clone()), &record));
        Ok(())
    })?;
    Ok(rows)
}

#[test]
fn every_value_is_read_in_every_compression_and_encoding() {
    let folder = fixtures().join("kinds");
    let expected: Vec<Value> =
        serde_json::from_str(&fs::read_to_string(folder.join("expected.json")).unwrap()).unwrap();
    for name in ["snappy", "none", "gzip", "zstd", "lz4", "pages", "deltas"] {
        let rows =
            read_all(&folder.join(format!("{name}.parquet"))).unwrap_or_else(|error| panic!("{name}: {error:?}"));
        assert_eq!(rows.len(), expected.len(), "{name}");
        for (i, (row, expected)) in rows.iter().zip(&expected).enumerate() {
            for (field, value) in expected.as_object().unwrap() {
                assert_eq!(&row[field], value, "{name}, row {i}, field {field}");
            }
        }
    }
    let error = read_all(&folder.join("brotli.parquet")).unwrap_err();
    assert!(error.problem.contains("Brotli") && error.hint.contains("snappy"), "{error:?}");
}

#[test]
fn a_hub_folder_with_an_image_column_gives_rows() {
    let dataset = open_one(&fixtures(), source("images", Some("train"))).unwrap();
    let rows = rows_of(&dataset);
    assert_eq!(rows.len(), 5);
    for (i, row) in rows.iter().enumerate() {
        assert_eq!(row.id, format!("images:{}", i + 1));
        assert_eq!((row.task.as_str(), row.split.as_str()), ("images", "train"));
        assert_eq!(row.question, format!("How many legs has picture {i} of train?"));
        assert_eq!(row.answer, Answer::Number((i + 2).to_string()));
        assert_eq!(row.meta["label"], ["cat", "dog", "bird"][i % 3], "classes come by their names");
        let [ImageData::Encoded(bytes)] = &row.images[..] else { panic!("{row:?}") };
        let image = image::load_from_memory(bytes).unwrap().to_rgb8();
        assert_eq!(image.get_pixel(0, 0).0, [(40 * i % 256) as u8, 20, (255 - 30 * i as i32).rem_euclid(256) as u8]);
    }
    assert_eq!(open_one(&fixtures(), source("images", Some("test"))).unwrap().len(), 2);
    let error = open_one(&fixtures(), source("images", None)).unwrap_err();
    assert!(error.to_string().contains("splits test, train"), "{error}");
    // One file of the folder, and a column under another name.
    let one = DataSource {
        fields: [("answer".to_string(), "label".to_string())].into(),
        ..source("images/data/test-00000-of-00001.parquet", None)
    };
    assert_eq!(open_one(&fixtures(), one).unwrap().row(1).answer, Answer::Text("dog".into()));
    for (name, told) in [("prompt", "the row has the fields"), ("solution", "renames to `prompt`")] {
        let ours = if name == "prompt" { "question" } else { "prompt" };
        let fields = [(ours.to_string(), name.to_string())].into();
        let error = open_one(&fixtures(), DataSource { fields, ..source("images", Some("test")) }).unwrap_err();
        let all = format!("{error} {}", error.hint().unwrap());
        assert!(all.contains(told), "{all}");
    }
}

#[test]
fn messages_take_their_pictures_from_the_column_beside_them() {
    let rows = rows_of(&open_one(&fixtures(), source("messages", None)).unwrap());
    assert_eq!(rows.len(), 6);
    for (i, pair) in rows.chunks(2).enumerate() {
        assert_eq!(pair[0].question, format!("What is shown, {i}?"));
        assert_eq!(pair[0].answer, Answer::Text(format!("Thing {i}.")));
        assert_eq!((pair[0].images.len(), pair[1].images.len()), (i + 1, i + 1));
        assert_eq!(pair[1].question, "Again?");
    }
}

#[test]
fn what_is_read_can_be_audited_and_written_in_other_forms() {
    let dataset = open_one(&fixtures(), source("images", Some("train"))).unwrap();
    let found = audit(&dataset);
    assert_eq!((found.num_rows, found.answer_types["number"], found.unreadable.len()), (5, 5, 0));
    let folder = tempfile::tempdir().unwrap();
    for (form, name) in [(Form::Rows, "rows"), (Form::Messages, "messages"), (Form::Llava, "llava")] {
        let out = folder.path().join(name);
        convert(&dataset, &out, form).unwrap();
        let again = rows_of(&open_one(&out, DataSource::file(form.file())).unwrap());
        for (row, again) in rows_of(&dataset).iter().zip(&again) {
            assert_eq!((&row.question, &row.answer), (&again.question, &again.answer));
            let ([ImageData::Encoded(bytes)], [ImageData::Path(path)]) = (&row.images[..], &again.images[..]) else {
                panic!("{again:?}")
            };
            assert_eq!(fs::read(path).unwrap(), bytes[..], "pictures keep their bytes");
        }
    }
}

#[test]
fn a_bad_row_is_named_by_file_row_and_field_or_left_out() {
    // The table of all kinds has no questions.
    let bad = |on_bad_row| DataSource { on_bad_row, ..source("kinds/snappy.parquet", None) };
    let error = open_one(&fixtures(), bad(OnBadRow::Error)).unwrap_err().to_string();
    assert!(error.contains("snappy.parquet, row 1: field `question`: it is missing"), "{error}");
    let fields = [("question".to_string(), "text".to_string()), ("answer".to_string(), "whole".to_string())].into();
    let renamed = DataSource { fields, ..bad(OnBadRow::Skip) };
    let dataset = open_one(&fixtures(), renamed).unwrap();
    assert_eq!((dataset.len(), dataset.skipped().len()), (48, 12), "every fifth row has gaps");
    assert!(dataset.skipped()[0].reason.contains("row 4"), "{:?}", dataset.skipped()[0]);
}

#[test]
fn damaged_files_are_refused_and_never_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.parquet");
    let mut refused = 0;
    let mut tried = 0;
    for name in
        ["kinds/snappy", "kinds/zstd", "kinds/gzip", "kinds/lz4", "kinds/pages", "kinds/deltas", "messages/train"]
    {
        let whole = fs::read(fixtures().join(format!("{name}.parquet"))).unwrap();
        for len in (0..whole.len()).step_by(197) {
            fs::write(&path, &whole[..len]).unwrap();
            assert!(read_all(&path).is_err(), "{name} cut at {len}");
        }
        // A changed byte may give other values; it must never do more.
        for i in 0..200 {
            let mut bytes = whole.clone();
            let at = (i * 7919 + i * i * 31) % bytes.len();
            bytes[at] ^= [0x01, 0x80, 0xff, 0x10][i % 4];
            fs::write(&path, &bytes).unwrap();
            tried += 1;
            refused += usize::from(read_all(&path).is_err());
        }
    }
    assert!(refused > tried / 10, "{refused} of {tried}");
    fs::write(&path, "not parquet at all").unwrap();
    let error = open_one(folder.path(), DataSource::file("damaged.parquet")).unwrap_err();
    assert!(error.to_string().contains("damaged.parquet: it is no Parquet file"), "{error}");
    let absent = open_one(folder.path(), DataSource::file("absent.parquet")).unwrap_err();
    assert!(absent.to_string().contains("absent.parquet"), "{absent}");
}
