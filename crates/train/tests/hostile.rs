//! Answers that try to be paid for more than they say, through the same door as in training: text to score. Every case
//! of the table of adversarial answers, and others that were thought of or seen; nothing here may earn, and nothing may
//! take long.

use std::time::Instant;

use foveate_tasks::row::{Answer, Call, Row};
use foveate_train::reward::spec::RewardSpec;
use foveate_train::reward::{Completion, Group, Rewards, Scored, Status, Unknown};
use serde::Deserialize;

fn row(answer: Answer, choices: &[&str]) -> Row {
    Row {
        id: "r1".into(),
        images: vec![],
        question: "What is it?".into(),
        answer,
        choices: choices.iter().map(|choice| choice.to_string()).collect(),
        rationale: "There are two red cars and three blue cars, so five.".into(),
        facts: "red cars: 2, blue cars: 3".into(),
        task: "counting".into(),
        split: "train".into(),
        level: 0,
        meta: serde_json::Map::new(),
    }
}

fn rewards(text: &str) -> Rewards {
    #[derive(Deserialize)]
    struct Part {
        rewards: Vec<RewardSpec>,
    }
    let part: Part = toml::from_str(&format!("rewards = [ {text} ]")).expect("rewards");
    Rewards::new(part.rewards, Unknown::Leave, 64).expect("consistent")
}

fn score(rewards: &Rewards, row: &Row, text: &str) -> Scored {
    let completions = vec![Completion { text, num_tokens: 8, ..Completion::default() }];
    let group = Group { row, refined: None, frame: None, completions };
    rewards.score(&[group], 0).expect("scores").remove(0).remove(0)
}

/// The accuracy and status of an answer behind the flag.
fn flagged(row: &Row, answer: &str) -> (f32, Status) {
    let scored = score(&rewards("{ kind = 'accuracy' }"), row, &format!("I look.\nAnswer: {answer}"));
    (scored.accuracy.expect("known"), scored.verdict.status)
}

fn number(text: &str) -> Row {
    row(Answer::Number(text.into()), &[])
}

fn all_types() -> Vec<Row> {
    let call = Call { function: "change_color".into(), object: "0".into(), value: "red".into() };
    let answers = [
        Answer::Number("5".into()),
        Answer::Text("red car".into()),
        Answer::Member(vec!["cat".into(), "kitten".into()]),
        Answer::YesNo(true),
        Answer::Labels(vec!["cat".into(), "dog".into()]),
        Answer::Box([0.0, 0.0, 10.0, 10.0]),
        Answer::Functions(vec![call]),
        Answer::Expression("\\frac{x}{2}".into()),
    ];
    let mut rows: Vec<Row> = answers.into_iter().map(|answer| row(answer, &[])).collect();
    rows.push(row(Answer::Choice(vec!["A".into(), "C".into()]), &["w", "x", "y", "z"]));
    rows
}

#[test]
fn no_answer_is_no_answer_whatever_the_type() {
    let (flag, tag) = (rewards("{ kind = 'accuracy' }"), rewards("{ kind = 'accuracy', extract = 'tag' }"));
    for row in all_types() {
        let gold = row.answer.text();
        for text in ["", " ", "Answer:", "Answer: \n\n", "Answer: .", &gold, "\u{200B}Answer:\u{FEFF}"] {
            let scored = score(&flag, &row, text);
            assert_eq!((scored.accuracy, scored.verdict.status), (Some(0.0), Status::NoAnswer), "{text:?} for {gold}");
        }
        for text in [
            String::new(),
            "<answer></answer>".into(),
            "<answer> </answer>".into(),
            format!("<answer>{gold}"),
            format!("{gold}</answer>"),
            format!("<answer>{gold}</answer><answer>{gold}</answer>"),
            format!("<think>a <answer>{gold}</answer></think>"),
            format!("<think>a</think><answer>{gold}</answer></think>"),
            format!("<think>a <answer>{gold}</answer>"),
            gold.clone(),
        ] {
            let scored = score(&tag, &row, &text);
            assert_eq!((scored.accuracy, scored.verdict.status), (Some(0.0), Status::NoAnswer), "{text:?}");
        }
        assert_eq!(
            score(&tag, &row, &format!("<think>a</think><answer>{gold}</answer>")).accuracy,
            Some(1.0),
            "{gold}"
        );
        assert_eq!(flagged(&row, &gold).0, 1.0, "{gold}");
    }
}

#[test]
fn hedges_and_lists_do_not_pay() {
    let yes = row(Answer::YesNo(true), &[]);
    for text in ["yes or no", "YES, it is not", "not correct", "untrue", "yes no", "no, yes", "maybe yes", "y", "1"] {
        assert_eq!(flagged(&yes, text).0, 0.0, "{text}");
    }
    assert_eq!(flagged(&row(Answer::YesNo(false), &[]), "incorrect").0, 1.0);
    let two = row(Answer::Choice(vec!["A".into(), "C".into()]), &["w", "x", "y", "z"]);
    let one = row(Answer::Choice(vec!["B".into()]), &["w", "x", "y", "z"]);
    for (row, text, status) in [
        (&two, "a red car", Status::NoAnswer),
        (&two, "Option A and not B", Status::Ambiguous),
        (&two, "A,B,C,D", Status::Ok),
        (&two, "AC", Status::NoAnswer),
        (&two, "A", Status::Ok),
        (&one, "A, B, C, D", Status::Ok),
        (&one, "A or B", Status::Ambiguous),
        (&one, "B or B", Status::Ambiguous),
        (&one, "not B", Status::Unparsable),
        (&one, "B. y", Status::Unparsable),
        (&one, "E", Status::Unparsable),
        (&one, "Б", Status::NoAnswer),
    ] {
        assert_eq!(flagged(row, text), (0.0, status), "{text}");
    }
    assert_eq!((flagged(&two, "C, A").0, flagged(&one, "(b)").0, flagged(&one, "B. x").0), (1.0, 1.0, 1.0));
    let member = row(Answer::Member(vec!["cat".into(), "kitten".into()]), &[]);
    for text in ["cat or dog", "cat, kitten", "a cat", "concat", "cat cat", "not cat"] {
        assert_eq!(flagged(&member, text).0, 0.0, "{text}");
    }
    let everything: String = (0..200).map(|i| format!("label {i}, ")).collect();
    let labels = row(Answer::Labels(vec!["label 3".into()]), &[]);
    assert!(flagged(&labels, &everything).0 < 0.01);
    assert_eq!(flagged(&labels, "label 3, label 3, LABEL 3.").0, 1.0, "the same label again is the same set");
    assert_eq!(flagged(&labels, "label 31").0, 0.0);
}

#[test]
fn numbers_are_one_number() {
    let three = number("3");
    for text in [
        "1 2 3 4 5 6 7 8 9 10",
        "3 or 4",
        "3-4",
        "3, 4",
        "2 < 3",
        "nan",
        "inf",
        "1_000",
        "1,23",
        "٣",
        "x=3",
        "3 apples",
        "3e",
        "--3",
        "3.0.0",
        "0x3",
        "3/1",
        "three",
        "3 3",
        "+-3",
        "1e999",
    ] {
        assert_eq!(flagged(&three, text), (0.0, Status::Unparsable), "{text}");
    }
    for text in ["30", "33", "0.3", "-3", "3.1", "3000", "30%", "2.9999"] {
        assert_eq!(flagged(&three, text).0, 0.0, "{text}");
    }
    for text in ["3", "3.0", "３", "3.", "+3", "3e0"] {
        assert_eq!(flagged(&three, text).0, 1.0, "{text}");
    }
    for text in ["0", "0.0", "-0", "1e-12", "\u{2212}0"] {
        assert_eq!(flagged(&number("0"), text).0, 1.0, "{text}");
    }
    assert_eq!(flagged(&number("0"), "0.001").0, 0.0);
    assert_eq!((flagged(&number("1"), "10").0, flagged(&number("10"), "1").0), (0.0, 0.0));
    let loose = rewards("{ kind = 'accuracy', verify = { number = { rel_tol = 0.05 } } }");
    let guarded = rewards("{ kind = 'accuracy', verify = { number = { rel_tol = 0.05, year_guard = true } } }");
    assert_eq!(score(&loose, &number("2010"), "Answer: 2009").accuracy, Some(1.0));
    assert_eq!(score(&guarded, &number("2010"), "Answer: 2009").accuracy, Some(0.0));
    let exact = rewards("{ kind = 'accuracy', verify = { text = { mode = 'exact' } } }");
    let text = row(Answer::Text("5".into()), &[]);
    assert_eq!(score(&exact, &text, "Answer: 5.0").accuracy, Some(0.0));
    assert_eq!((flagged(&row(Answer::Text("1".into()), &[]), "10").0, flagged(&text, "15").0), (0.0, 0.0));
}

#[test]
fn boxes_are_one_box() {
    let gold = row(Answer::Box([0.0, 0.0, 10.0, 10.0]), &[]);
    for text in [
        "[0,0,10,10] [1,1,2,2]",
        "[0,0,10,10] or [0,0,10,10]",
        "[10,10,0,0]",
        "[0,0,10,10,10]",
        "[0,0,10]",
        "[NaN,0,10,10]",
        "[0,0,inf,inf]",
        "[0,0,0,0]",
        "[0,0,1000,1000]",
        "[0,0,1e308,1e308]",
        "[-1e308,-1e308,1e308,1e308]",
        "0,0,10,10",
        "[a,b,c,d]",
    ] {
        assert_eq!(flagged(&gold, text).0, 0.0, "{text}");
    }
    assert_eq!(flagged(&gold, "{\"bbox\": [0, 0, 10, 9.5]}").0, 1.0);
    let soft = rewards("{ kind = 'accuracy', verify = { box = { score = 'soft' } } }");
    let whole = score(&soft, &gold, "Answer: [0, 0, 100, 100]").accuracy.expect("known");
    assert!((whole - 0.01).abs() < 1e-6, "the whole picture earns its overlap and no more");
}

#[test]
fn calls_count_once_and_all_of_them_count() {
    let call = |object: &str, value: &str| Call {
        function: "change_color".into(),
        object: object.into(),
        value: value.into(),
    };
    let gold = row(Answer::Functions(vec![call("0", "red"), call("1", "blue")]), &[]);
    let pay = |text: &str| flagged(&gold, text).0;
    assert_eq!(pay("change_color(1, blue), change_color(0, red)"), 1.0, "order is not scored");
    assert_eq!(pay("change_color(0, red), change_color(0, red)"), 0.25, "a repeated call costs");
    let colours = ["red", "blue", "green", "gray", "cyan", "brown", "yellow", "purple"];
    let all: Vec<String> = (0..3).flat_map(|o| colours.map(|c| format!("change_color({o}, {c})"))).collect();
    assert!(pay(&all.join(", ")) < 0.1, "{}", pay(&all.join(", ")));
    assert_eq!(pay("paint(0, red)"), 0.0);
    assert_eq!(pay("change_color(red)"), 0.0);
    assert_eq!(pay("change_color 0 red"), 0.0);
    let penalty = rewards("{ kind = 'accuracy', verify = { functions = { weights = 'penalty' } } }");
    assert!(score(&penalty, &gold, "Answer: change_color(0, green)").accuracy.expect("known") < 0.0);
}

#[test]
fn expressions_are_values_and_hostile_ones_end_quickly() {
    let one = row(Answer::Expression("1".into()), &[]);
    for text in ["x=12", "12", "1 2", "0 or 1", "1, 2", "", "the answer is one", "1 = 1 = 1", "nan", "1?"] {
        assert_eq!(flagged(&one, text).0, 0.0, "{text}");
    }
    assert_eq!(flagged(&row(Answer::Expression("y = 3".into()), &[]), "x = 3").0, 0.0);
    assert_eq!(flagged(&row(Answer::Expression("y = 3".into()), &[]), "3").0, 1.0);
    let whole = rewards("{ kind = 'accuracy', extract = 'whole' }");
    for row in all_types() {
        for text in [
            "9^9^9^9".to_string(),
            "(".repeat(10_000),
            "[".repeat(10_000),
            "<answer>".repeat(10_000),
            "Answer: ".repeat(10_000),
            "\\boxed{".repeat(10_000),
            "f(".repeat(10_000),
            "a(0,b".repeat(10_000),
            "A, ".repeat(10_000),
            "x, ".repeat(10_000),
            "é".repeat(1 << 20),
            "9".repeat(1 << 20),
            "\\frac{1}{0}".to_string(),
            "\u{202E}5\u{0000}".to_string(),
        ] {
            let began = Instant::now();
            for rewards in
                [&whole, &rewards("{ kind = 'accuracy' }"), &rewards("{ kind = 'accuracy', extract = 'tag' }")]
            {
                let scored = score(rewards, &row, &text);
                let paid = scored.accuracy.expect("known");
                assert!(paid <= 0.0, "{paid} for {:?} of {}", &text[..text.len().min(20)], row.answer.text());
            }
            // A megabyte is copied, folded and searched a few times, on a machine that may be busy; what is worse than
            // linear would take minutes.
            assert!(began.elapsed().as_secs() < 10, "{:?} took {:?}", &text[..text.len().min(20)], began.elapsed());
        }
    }
}

#[test]
fn shapes_and_reasoning_cannot_be_had_for_nothing() {
    let row = number("5");
    let shaped = |form: &str, text: &str| score(&rewards(form), &row, text).parts[0].expect("known");
    for text in [
        "<think>a</think><answer>x</answer><answer>y</answer>",
        "<think></think><answer></answer>",
        "<think> </think><answer> </answer>",
        "<think><answer>5</answer></think>",
        "<think><think>a</think></think><answer>x</answer>",
        "<answer>x</answer><think>a</think>",
        "x<think>a</think><answer>x</answer>",
        "<think>a</think><answer>x",
    ] {
        assert_eq!(shaped("{ kind = 'format_tags' }", text), 0.0, "{text}");
    }
    for text in ["Answer: 5", "5", "a Answer: 5 Answer: 5", "a Answer:", "answer:answer: 5"] {
        assert_eq!(shaped("{ kind = 'format_flag' }", text), 0.0, "{text}");
    }
    let caption = "{ kind = 'format_tags', form = 'caption' }";
    let full = "<summary>s</summary><caption>c</caption><think>t</think><answer>5</answer>";
    assert_eq!(shaped(caption, full), 1.0);
    for text in [
        "<think>t</think><answer>5</answer>",
        "<caption>c</caption><summary>s</summary><think>t</think><answer>5</answer>",
        "<summary>s</summary><caption></caption><think>t</think><answer>5</answer>",
        "<summary>s<caption>c</caption></summary><think>t</think><answer>5</answer>",
        "<summary><answer>5</answer></summary><caption>c</caption><think>t</think><answer>5</answer>",
    ] {
        assert_eq!(shaped(caption, text), 0.0, "{text}");
    }
    // Copying the reference is worth nothing where the answer is wrong, if the term is gated.
    let gated = rewards("{ kind = 'accuracy' }, { kind = 'thinking_f1', gate = 'accuracy' }");
    let copied = |answer: &str| score(&gated, &row, &format!("{}\nAnswer: {answer}", row.rationale)).total;
    assert_eq!((copied("5"), copied("6")), (Some(2.0), Some(0.0)));
    let spam = format!("{}\nAnswer: 5", "two red cars three blue cars five there so and ".repeat(50));
    let multiset = rewards("{ kind = 'thinking_f1', multiset = true }");
    assert!(score(&multiset, &row, &spam).parts[0].expect("known") < 0.1);
}
