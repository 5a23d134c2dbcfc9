//! The rewards of a recipe: one entry per term, with its weight, its gate and its options.
//! Declares and checks; computes nothing. Cost: none.

use foveate_tasks::row::Row;
use serde::{Deserialize, Serialize};

use super::accuracy::VerifyOptions;
use super::checker::Grades;
use super::extract::Extract;
use super::format::Form;
use super::remote::chat::{self, ChatSpec};
use super::remote::judge::Criterion;
use super::{Compat, RewardError};

/// One term of the total reward.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum RewardSpec {
    /// Is the final answer right? The verifier follows from the type of the row's answer.
    Accuracy(AccuracySpec),
    /// Can the final answer be read at all, right or wrong? R3 pays 0.2 for it.
    Parsable(ParsableSpec),
    /// Is the completion one think block and one answer block?
    FormatTags(FormatTagsSpec),
    /// Is there some reasoning and then exactly one `Answer:`?
    FormatFlag(FormatFlagSpec),
    /// Does the answer hold a box in the expected notation? Only for questions whose answer is a box.
    FormatBox(FormatBoxSpec),
    /// Content words shared with a reference reasoning. Copying the reference scores 1, so gate it by accuracy or
    /// give it a small weight.
    ThinkingF1(ThinkingSpec),
    /// Shorter than the others of the group.
    Length(LengthSpec),
    /// Visible steps.
    Steps(StepsSpec),
    /// Penalty near the length limit.
    Overlong(OverlongSpec),
    /// Penalty for repeated phrases.
    Repetition(RepetitionSpec),
    /// Length close to that of the group's correct answers.
    Dylr(DylrSpec),
    /// Low, medium or high: how well the reasoning agrees with what the picture shows. By shared words, or by a judge.
    Checker(CheckerSpec),
    /// Marks of a language model behind an OpenAI-style endpoint.
    Judge(JudgeSpec),
    /// A score from a process of your own that speaks JSON lines.
    Process(ProcessSpec),
    /// A score from an HTTP endpoint of your own.
    Http(HttpSpec),
}

/// When a term counts in full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Always.
    #[default]
    None,
    /// Only if every format term is above 0; else the term is 0.
    Format,
    /// Multiplied by the accuracy. Recommended for `thinking_f1` and `length`.
    Accuracy,
}

macro_rules! spec {
    ($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $default:expr,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        pub struct $name {
            /// Factor of this term in the total reward. 1 unless a term should only break ties.
            pub weight: f32,
            /// When this term counts.
            pub gate: Gate,
            $($(#[$field_doc])* pub $field: $type,)*
        }
        impl Default for $name {
            fn default() -> Self {
                Self { weight: 1.0, gate: Gate::None, $($field: $default,)* }
            }
        }
    };
}

spec! {
    /// Settings of `accuracy`.
    AccuracySpec {
        /// Where the final answer stands.
        extract: Extract = Extract::Flag,
        /// Scores as one of the published systems does, quirks included. Leave it out for training that should hold.
        compat: Option<Compat> = None,
        /// Options by answer type.
        verify: VerifyOptions = VerifyOptions::default(),
    }
}

spec! {
    /// Settings of `parsable`.
    ParsableSpec {
        /// Pays for wrong answers only, so that a right one earns what `accuracy` gives and no more.
        wrong_only: bool = false,
    }
}

spec! {
    /// Settings of `format_tags`.
    FormatTagsSpec {
        /// Which tags.
        form: Form = Form::ThinkAnswer,
        /// As published: repeated tags and empty blocks pass, a trailing newline does not.
        compat: Option<Compat> = None,
    }
}

spec! {
    /// Settings of `format_flag`.
    FormatFlagSpec {
        /// Fewest characters of reasoning before the flag. 1 asks for some; raise it when the model skips reasoning.
        /// `compat` makes it 0 unless it is set.
        min_think: Option<usize> = None,
        /// Most characters of the answer. 20 suits chart questions; leave it out for long answers.
        max_answer_chars: Option<usize> = None,
        /// As published: no reasoning needed, the answer may be empty.
        compat: Option<Compat> = None,
    }
}

spec! {
    /// Settings of `format_box`.
    FormatBoxSpec {
        /// Where the final answer stands.
        extract: Extract = Extract::Tag,
        /// As published: unsigned whole numbers only.
        compat: Option<Compat> = None,
    }
}

/// What reasoning is compared with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Against {
    /// The row's rationale as it came.
    #[default]
    Rationale,
    /// The row's facts.
    Facts,
    /// The refined rationale where there is one, else the raw one.
    Refined,
}

spec! {
    /// Settings of `thinking_f1`.
    ThinkingSpec {
        /// The reference text.
        against: Against = Against::Rationale,
        /// What ends the reasoning: the same place where `accuracy` finds the answer.
        extract: Extract = Extract::Flag,
        /// Counts words as often as they occur, in place of sets.
        multiset: bool = false,
        /// As published: 1e-6 added to both denominators.
        compat: Option<Compat> = None,
    }
}

/// Unit of length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LengthUnit {
    /// Characters of the text, as published.
    #[default]
    Characters,
    /// Tokens.
    Tokens,
}

spec! {
    /// Settings of `length`.
    LengthSpec {
        /// Factor on the group-relative value, which lies between -0.5 and 0.5. Small: it should only break ties.
        scale: f32 = 0.05,
        /// The term is 0 before this step, so that answers become right before they become short.
        start_step: u64 = 0,
        /// What is counted.
        unit: LengthUnit = LengthUnit::Characters,
    }
}

spec! {
    /// Settings of `steps`.
    StepsSpec {}
}

spec! {
    /// Settings of `overlong`.
    OverlongSpec {
        /// Tokens before the limit over which the penalty grows from 0 to -1. A fifth of the limit is customary.
        buffer: usize = 16,
    }
}

spec! {
    /// Settings of `repetition`.
    RepetitionSpec {
        /// Words per phrase. 20 finds loops only; 3 also punishes style.
        words: usize = 20,
        /// Largest penalty.
        scale: f32 = 0.5,
        /// Spares right answers.
        wrong_only: bool = false,
    }
}

spec! {
    /// Settings of `dylr`.
    DylrSpec {
        /// Value for an empty answer.
        min: f64 = -1.0,
        /// Value at the target length.
        max: f64 = 0.0,
        /// As the released code: wrong answers only, range -0.5 to 0, fixed target in groups without a right answer.
        compat: bool = false,
    }
}

/// What happens where a judge fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fallback {
    /// The reward is unknown.
    #[default]
    Unknown,
    /// The grade by shared words takes its place.
    Local,
}

spec! {
    /// Settings of `checker`.
    CheckerSpec {
        /// The language model that grades; without it the grade comes from words shared with `against`.
        judge: Option<ChatSpec> = None,
        /// Asks the judge once per row what the picture shows, as a list read out of facts or rationale, and grades
        /// against the list. Worth it where facts are prose or missing; the worlds' facts are lists already.
        elements: bool = false,
        /// Where the judge fails.
        fallback: Fallback = Fallback::Unknown,
        /// What the local grade compares with.
        against: Against = Against::Facts,
        /// What ends the reasoning: the same place where `accuracy` finds the answer.
        extract: Extract = Extract::Flag,
        /// What each grade is worth.
        grades: Grades = Grades::default(),
        /// As published: the first of the three words found anywhere counts, no word is low.
        compat: Option<Compat> = None,
    }
}

spec! {
    /// Settings of `judge`.
    JudgeSpec {
        /// Name under which the score is logged.
        name: String = "judge".to_string(),
        /// The language model.
        chat: ChatSpec = ChatSpec::default(),
        /// What is marked from 0 to 100; the reward is the mean over 100.
        criteria: Vec<Criterion> = Criterion::ALL.to_vec(),
    }
}

spec! {
    /// Settings of `process`.
    ProcessSpec {
        /// Name under which the score is logged.
        name: String = "process".to_string(),
        /// Program and arguments; started once, in the recipe's folder. See docs/rewards.md for what it reads and says.
        command: Vec<String> = Vec::new(),
        /// Seconds per question until the plug-in is killed.
        timeout_secs: f64 = 60.0,
        /// How often it may be started again after it hung or died.
        restarts: u32 = 3,
    }
}

spec! {
    /// Settings of `http`.
    HttpSpec {
        /// Name under which the score is logged.
        name: String = "http".to_string(),
        /// Where questions are posted; plain `http://`.
        url: String = String::new(),
        /// Environment variable that holds a bearer token, if one is needed.
        key_variable: Option<String> = None,
        /// Questions under way at a time.
        concurrency: usize = 4,
        /// Seconds until a request is given up.
        timeout_secs: f64 = 60.0,
        /// Attempts per question.
        attempts: u32 = 3,
        /// Seconds before the second attempt; doubled before each further one.
        backoff_secs: f64 = 1.0,
    }
}

impl CheckerSpec {
    /// The text that a local grade compares with.
    pub fn reference<'a>(&self, row: &'a Row) -> &'a str {
        match self.against {
            Against::Facts if !row.facts.trim().is_empty() => &row.facts,
            _ => &row.rationale,
        }
    }
}

impl RewardSpec {
    fn common(&self) -> (f32, Gate) {
        match self {
            RewardSpec::Accuracy(s) => (s.weight, s.gate),
            RewardSpec::Parsable(s) => (s.weight, s.gate),
            RewardSpec::FormatTags(s) => (s.weight, s.gate),
            RewardSpec::FormatFlag(s) => (s.weight, s.gate),
            RewardSpec::FormatBox(s) => (s.weight, s.gate),
            RewardSpec::ThinkingF1(s) => (s.weight, s.gate),
            RewardSpec::Length(s) => (s.weight, s.gate),
            RewardSpec::Steps(s) => (s.weight, s.gate),
            RewardSpec::Overlong(s) => (s.weight, s.gate),
            RewardSpec::Repetition(s) => (s.weight, s.gate),
            RewardSpec::Dylr(s) => (s.weight, s.gate),
            RewardSpec::Checker(s) => (s.weight, s.gate),
            RewardSpec::Judge(s) => (s.weight, s.gate),
            RewardSpec::Process(s) => (s.weight, s.gate),
            RewardSpec::Http(s) => (s.weight, s.gate),
        }
    }

    /// Factor in the total reward.
    pub fn weight(&self) -> f32 {
        self.common().0
    }

    /// When the term counts.
    pub fn gate(&self) -> Gate {
        self.common().1
    }

    /// Name in logs: `reward/<name>/mean`.
    pub fn name(&self) -> &str {
        match self {
            RewardSpec::Accuracy(_) => "accuracy",
            RewardSpec::Parsable(_) => "parsable",
            RewardSpec::FormatTags(_) => "format_tags",
            RewardSpec::FormatFlag(_) => "format_flag",
            RewardSpec::FormatBox(_) => "format_box",
            RewardSpec::ThinkingF1(_) => "thinking_f1",
            RewardSpec::Length(_) => "length",
            RewardSpec::Steps(_) => "steps",
            RewardSpec::Overlong(_) => "overlong",
            RewardSpec::Repetition(_) => "repetition",
            RewardSpec::Dylr(_) => "dylr",
            RewardSpec::Checker(_) => "checker",
            RewardSpec::Judge(s) => &s.name,
            RewardSpec::Process(s) => &s.name,
            RewardSpec::Http(s) => &s.name,
        }
    }

    /// Whether the term rewards shape.
    pub fn is_format(&self) -> bool {
        matches!(self, RewardSpec::FormatTags(_) | RewardSpec::FormatFlag(_) | RewardSpec::FormatBox(_))
    }

    /// Whether the score comes from a process or from the network.
    pub fn is_outside(&self) -> bool {
        match self {
            RewardSpec::Judge(_) | RewardSpec::Process(_) | RewardSpec::Http(_) => true,
            RewardSpec::Checker(checker) => checker.judge.is_some(),
            _ => false,
        }
    }

    /// Applies a recipe's `compat` to terms that do not set their own.
    pub fn set_default_compat(&mut self, compat: Compat) {
        match self {
            RewardSpec::Accuracy(AccuracySpec { compat: own, .. })
            | RewardSpec::FormatTags(FormatTagsSpec { compat: own, .. })
            | RewardSpec::FormatFlag(FormatFlagSpec { compat: own, .. })
            | RewardSpec::FormatBox(FormatBoxSpec { compat: own, .. })
            | RewardSpec::Checker(CheckerSpec { compat: own, .. })
            | RewardSpec::ThinkingF1(ThinkingSpec { compat: own, .. }) => {
                own.get_or_insert(compat);
            }
            _ => {}
        }
    }
}

/// Checks a list of terms as a whole.
pub fn check(specs: &[RewardSpec]) -> Result<(), RewardError> {
    for (index, spec) in specs.iter().enumerate() {
        let name = spec.name();
        if name.is_empty() {
            return Err(RewardError::Option { option: "name", why: "must not be empty" });
        }
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-') {
            return Err(RewardError::Option { option: "name", why: "holds letters, digits, _ and - only" });
        }
        if specs[..index].iter().any(|other| other.name() == name) {
            return Err(RewardError::Twice { name: name.to_string() });
        }
        if !spec.weight().is_finite() {
            return Err(RewardError::Option { option: "weight", why: "must be a finite number" });
        }
        let needs = match spec.gate() {
            Gate::None => None,
            Gate::Format if specs.iter().any(|s| s.is_format() && s != spec) => None,
            Gate::Format => Some("format_tags"),
            Gate::Accuracy if matches!(spec, RewardSpec::Accuracy(_)) => Some("another"),
            Gate::Accuracy if specs.iter().any(|s| matches!(s, RewardSpec::Accuracy(_))) => None,
            Gate::Accuracy => Some("accuracy"),
        };
        if let Some(needs) = needs {
            return Err(RewardError::Gate { name: name.to_string(), needs });
        }
        let needs_accuracy = match spec {
            RewardSpec::Length(_) | RewardSpec::Dylr(_) | RewardSpec::Parsable(_) => true,
            RewardSpec::Repetition(s) => s.wrong_only,
            _ => false,
        };
        if needs_accuracy && !specs.iter().any(|s| matches!(s, RewardSpec::Accuracy(_))) {
            return Err(RewardError::Gate { name: name.to_string(), needs: "accuracy" });
        }
        let refuse = |option: &'static str| move |why: &'static str| RewardError::Option { option, why };
        match spec {
            RewardSpec::Accuracy(accuracy) => accuracy.verify.check()?,
            RewardSpec::Checker(CheckerSpec { judge: None, elements: true, .. }) => {
                return Err(refuse("elements")("are listed by a language model: set judge as well"));
            }
            RewardSpec::Checker(CheckerSpec { judge: Some(chat), .. }) => chat.check().map_err(refuse("judge"))?,
            RewardSpec::Judge(judge) => {
                judge.chat.check().map_err(refuse("chat"))?;
                if judge.criteria.is_empty() {
                    return Err(refuse("criteria")("needs at least one of accuracy, logic, format, fluency"));
                }
            }
            RewardSpec::Process(process) => {
                chat::limits(1, process.timeout_secs, 1, 0.0).map_err(refuse("timeout_secs"))?;
                if process.command.is_empty() {
                    return Err(refuse("command")("is a list such as [\"python3\", \"reward.py\"]"));
                }
            }
            RewardSpec::Http(http) => {
                chat::limits(http.concurrency, http.timeout_secs, http.attempts, http.backoff_secs)
                    .map_err(refuse("http"))?;
            }
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<RewardSpec>, toml::de::Error> {
        #[derive(Deserialize)]
        struct Part {
            rewards: Vec<RewardSpec>,
        }
        toml::from_str::<Part>(text).map(|part| part.rewards)
    }

    #[test]
    fn recipes_read_and_unknown_keys_are_refused() {
        let specs = read(
            "rewards = [ { kind = 'format_flag' }, { kind = 'thinking_f1', against = 'rationale', gate = 'accuracy' },
               { kind = 'accuracy', extract = 'flag', verify = { number = { rel_tol = 0.05 }, box = { score = 'soft' } } } ]",
        )
        .expect("a recipe of the reference");
        check(&specs).expect("consistent");
        assert_eq!(specs.iter().map(RewardSpec::name).collect::<Vec<_>>(), ["format_flag", "thinking_f1", "accuracy"]);
        assert_eq!(specs[1].gate(), Gate::Accuracy);
        for bad in [
            "rewards = [ { kind = 'accuracy', extrct = 'flag' } ]",
            "rewards = [ { kind = 'acuracy' } ]",
            "rewards = [ { kind = 'accuracy', verify = { number = { tol = 1 } } } ]",
        ] {
            let message = read(bad).expect_err(bad).to_string();
            assert!(message.contains("unknown"), "{message}");
        }
    }

    #[test]
    fn lists_that_cannot_work_are_refused() {
        let bad = |text: &str| check(&read(text).expect("syntax")).expect_err(text);
        assert!(matches!(bad("rewards = [ { kind = 'steps', gate = 'accuracy' } ]"), RewardError::Gate { .. }));
        assert!(matches!(bad("rewards = [ { kind = 'accuracy', gate = 'format' } ]"), RewardError::Gate { .. }));
        assert!(matches!(bad("rewards = [ { kind = 'length' } ]"), RewardError::Gate { .. }));
        assert!(matches!(bad("rewards = [ { kind = 'steps' }, { kind = 'steps' } ]"), RewardError::Twice { .. }));
        assert!(matches!(bad("rewards = [ { kind = 'process' } ]"), RewardError::Option { option: "command", .. }));
        let slash = "rewards = [ { kind = 'http', name = '../x', url = 'http://x' } ]";
        assert!(matches!(bad(slash), RewardError::Option { option: "name", .. }));
        assert!(matches!(bad("rewards = [ { kind = 'judge' } ]"), RewardError::Option { option: "chat", .. }));
        let hasty = "rewards = [ { kind = 'checker', judge = { url = 'http://x', model = 'm', timeout_secs = 0 } } ]";
        assert!(matches!(bad(hasty), RewardError::Option { option: "judge", .. }));
        let cosine = "rewards = [ { kind = 'accuracy', verify = { number = { cosine = [0.2, 0.1] } } } ]";
        assert!(matches!(bad(cosine), RewardError::Option { .. }));
    }
}
