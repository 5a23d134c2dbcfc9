//! What can go wrong between a conversation and a prompt, worded for the person who has to fix it.
//! Each error carries a hint; which row it happened in is added by whoever holds the rows.
//! Cost: none.

use std::path::PathBuf;

/// Why a checkpoint's text and image settings could not be loaded, or a conversation could not be rendered.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// A file of the checkpoint folder is missing or unreadable.
    #[error("{}: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The settings of the checkpoint contradict each other or ask for something unknown.
    #[error("{}: {problem}", path.display())]
    Settings {
        /// The file that holds the setting.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The chat template does not compile or refuses the conversation.
    #[error("chat template: {problem}")]
    Template {
        /// The template engine's words.
        problem: String,
    },
    /// The tokenizer refused a text.
    #[error("tokenizer: {problem}")]
    Tokenizer {
        /// The tokenizer's words.
        problem: String,
    },
    /// A picture is missing, damaged or of an unknown kind.
    #[error("image {name}: {problem}")]
    Image {
        /// Path, or where the bytes came from.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A picture decodes to more pixels than anybody means to feed to a small model.
    #[error("image {name} has {width} x {height} pixels, more than the limit of {limit}")]
    ImageTooLarge {
        /// Path, or where the bytes came from.
        name: String,
        /// Columns of pixels.
        width: u32,
        /// Rows of pixels.
        height: u32,
        /// Most pixels that are decoded.
        limit: u64,
    },
    /// A picture has a shape that the model's processor does not take.
    #[error("a picture has {width} x {height} pixels: more than 200 times as long as wide, or no multiple of {side}")]
    PictureShape {
        /// Columns of pixels.
        width: u32,
        /// Rows of pixels.
        height: u32,
        /// Side in pixels of what one image token stands for.
        side: u32,
    },
    /// A tokenizer in a form that only Python reads.
    #[error("{} holds {slow} and no tokenizer.json: a slow tokenizer", path.display())]
    SlowTokenizer {
        /// The folder.
        path: PathBuf,
        /// What is there.
        slow: &'static str,
    },
    /// Text of the conversation holds a token that gives prompts their structure.
    #[error("the {role} text contains {token:?}, which is a control token of this model")]
    ControlToken {
        /// Whose text.
        role: &'static str,
        /// The token.
        token: String,
    },
    /// The rendered text asks for another number of pictures or features than there are.
    #[error("the prompt has {have} image placeholders, its pictures need {need}")]
    PlaceholderMismatch {
        /// Features, or pictures, that the conversation brings.
        need: usize,
        /// Placeholders in the rendered prompt.
        have: usize,
    },
    /// Limits on pictures that the model's processor does not know.
    #[error("images: {problem}")]
    Limits {
        /// What is wrong.
        problem: String,
        /// What to do.
        hint: &'static str,
    },
    /// The model has no eyes.
    #[error("the conversation holds a picture, the model only reads text")]
    NoImages,
    /// The prompt does not fit.
    #[error("the prompt has {tokens} tokens ({image_tokens} of them for images), the limit is {limit}")]
    TooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// How many of them stand for image features.
        image_tokens: usize,
        /// Most tokens that are allowed.
        limit: usize,
    },
    /// The template rewrites earlier text once more turns follow.
    #[error("the template's text up to turn {turn} is not the beginning of its text for more turns")]
    NotAPrefix {
        /// Number of turns in the shorter rendering.
        turn: usize,
    },
    /// The conversation has not the shape that was asked for.
    #[error("{problem}")]
    Conversation {
        /// What is wrong with it.
        problem: String,
    },
    /// Prompt and target do not decode to the text they were made from.
    #[error("the answer {text:?} decodes to {decoded:?} after its prompt")]
    JointDecode {
        /// The target text.
        text: String,
        /// What the tokens say.
        decoded: String,
    },
}

impl PromptError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            PromptError::File { .. } => {
                "point to a complete Hugging Face folder: config.json, tokenizer.json, a chat template, and \
                 preprocessor_config.json or processor_config.json"
            }
            PromptError::SlowTokenizer { .. } => {
                "make the fast form once in Python: AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            }
            PromptError::Settings { .. } => "the file may belong to another model or to a family that is not supported",
            PromptError::Template { .. } => {
                "chat_template.jinja, chat_template.json or tokenizer_config.json holds the template; a turn may have \
                 a role or a part it does not accept"
            }
            PromptError::Tokenizer { .. } => "tokenizer.json may be damaged",
            PromptError::Image { .. } => "PNG, JPEG and WebP are read; paths are relative to the file that names them",
            PromptError::ImageTooLarge { .. } => "shrink the picture first; models see far fewer pixels",
            PromptError::PictureShape { .. } => {
                "crop or pad the picture; with do_resize off, both sides must be multiples of a feature"
            }
            PromptError::ControlToken { .. } => {
                "remove it from the data; pictures are given as image parts, not as text"
            }
            PromptError::PlaceholderMismatch { .. } => {
                "the template drops or repeats pictures, or image_seq_len in processor_config.json does not fit the \
                 vision settings in config.json"
            }
            PromptError::Limits { hint, .. } => hint,
            PromptError::NoImages => "use a vision-language model, or data without pictures",
            PromptError::TooLong { .. } => {
                "shorten the text, use fewer or smaller pictures, or turn image splitting off; raise the limit only if \
                 the model was trained for it"
            }
            PromptError::NotAPrefix { .. } => {
                "train on the last turn only; this template writes earlier answers in another way than they were given"
            }
            PromptError::Conversation { .. } => {
                "turns alternate between user and assistant; the last one is the assistant's where an answer is scored"
            }
            PromptError::JointDecode { .. } => {
                "the tokenizer adds or drops characters at the start of a text; this checkpoint needs a patch"
            }
        }
    }
}
