//! Every recipe of the repository resolves, and what it resolves to is a recipe that resolves to itself.

use std::path::{Path, PathBuf};

use foveate_train::collect::CollectSpec;
use foveate_train::recipe::{self, parse};
use foveate_train::run::resolve;
use foveate_train::study;

fn recipes() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let mut files = Vec::new();
    for folder in [folder.clone(), folder.join("ci"), folder.join("arithmetic"), folder.join("relatives")] {
        for entry in std::fs::read_dir(folder).expect("a folder of recipes") {
            let path = entry.expect("an entry").path();
            if path.extension().is_some_and(|extension| extension == "toml") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

#[test]
fn recipes_resolve_to_recipes() {
    let files = recipes();
    assert!(files.len() >= 55, "{files:?}");
    for file in files {
        // The built-in model may not be part of this build; what is tested here does not depend on it.
        let sets = ["model={ new = {} }".to_string()];
        let raw = recipe::read(&file, &sets).unwrap_or_else(|error| panic!("{error}"));
        let run = resolve(&file, raw).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let text = run.to_toml();
        let again = parse::parse(&file, &text, &[]).unwrap_or_else(|error| panic!("{error}\n{text}"));
        let again = resolve(&file, again).unwrap_or_else(|error| panic!("{}: {error}\n{text}", file.display()));
        assert_eq!(again.to_toml(), text, "{}", file.display());
        assert_eq!(again.fingerprint(), run.fingerprint());
        assert!(run.num_steps() > 0);
    }
}

#[test]
fn settings_of_the_recipe_reach_the_stages_and_stages_come_first() {
    let text = r#"
        name = "x"
        model = { new = {} }
        questions_per_step = 3
        rewards = [ { kind = "accuracy" } ]
        [data]
        train = { task = "counting", rows = 50 }
        [[stage]]
        epochs = 2.0
        [[stage]]
        name = "second"
        questions_per_step = 5
        steps = 4
        rule = { kind = "sft" }
    "#;
    let file = Path::new("x.toml");
    let run = resolve(file, parse::parse(file, text, &[]).expect("a recipe")).expect("resolves");
    assert_eq!(run.stage[0].name, "stage-1");
    assert_eq!((run.stage[0].questions_per_step, run.stage[0].answers_per_question), (3, 8));
    assert_eq!(run.stage[0].steps, 34, "two passes over 50 rows in threes");
    assert_eq!((run.stage[1].questions_per_step, run.stage[1].answers_per_question), (5, 1));
    assert!(run.stage[1].rewards.is_empty(), "a supervised stage has none");
}

#[test]
fn studies_and_sample_settings_can_be_used() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    let files = |name: &str| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder.join(name)).expect("a folder of recipes");
        let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
        files.sort();
        files
    };
    let mut num_cells = 0;
    for file in files("studies") {
        let Ok(spec) = study::read(&file) else {
            // Recipes that only a study uses lie beside it.
            recipe::read(&file, &[]).unwrap_or_else(|error| panic!("{error}"));
            continue;
        };
        assert!(spec.seeds.len() >= 3, "{}", file.display());
        for cell in spec.cell.iter().filter(|cell| cell.of.is_none()) {
            let (recipe, mut sets) = study::cell_recipe(&file, &spec, cell, spec.seeds[0]);
            sets.push("model={ new = {} }".to_string());
            let raw = recipe::read(&recipe, &sets).unwrap_or_else(|error| panic!("{}: {error}", cell.name));
            let run = resolve(&recipe, raw).unwrap_or_else(|error| panic!("{}: {error}", cell.name));
            assert_eq!(run.seed, spec.seeds[0]);
            for claim in &spec.claim {
                assert!(run.data.test.contains_key(&claim.suite), "{}: no suite {}", cell.name, claim.suite);
            }
            num_cells += 1;
        }
    }
    assert!(num_cells >= 20, "{num_cells} cells");
    for file in files("sample") {
        let text = std::fs::read_to_string(&file).expect("a file");
        let spec: CollectSpec = parse::parse(&file, &text, &[]).unwrap_or_else(|error| panic!("{error}"));
        spec.check().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    }
}
