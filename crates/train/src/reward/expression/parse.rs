//! Reads LaTeX or plain notation into a tree (methods 6.7).
//! Grammar: numbers, fractions, powers, roots, pi, e, + - * /, implicit products, |x|, single-letter variables,
//! `v = expression`, tuples, sets, intervals, ±, and the common functions of one argument.
//! Cost: linear in the tokens; nesting deeper than 48 and more than 2,000 tokens are refused.

use super::exact::Rational;

const MAX_TOKENS: usize = 2000;
const MAX_DEPTH: usize = 48;

/// A scalar expression.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Number(f64, Option<Rational>),
    Pi,
    E,
    Variable(char),
    Negative(Box<Node>),
    Add(Box<Node>, Box<Node>),
    Multiply(Box<Node>, Box<Node>),
    Divide(Box<Node>, Box<Node>),
    Power(Box<Node>, Box<Node>),
    Root(u32, Box<Node>),
    Absolute(Box<Node>),
    Function(Function, Box<Node>),
    /// `a ± b`.
    PlusMinus(Box<Node>, Box<Node>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Function {
    Sin,
    Cos,
    Tan,
    Ln,
    Log,
    Exp,
}

/// What an answer may be.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Item {
    Scalar(Node),
    Infinity {
        negative: bool,
    },
    /// `v = item`: the name counts where the other side has one too.
    Named(char, Box<Item>),
    /// Tuples and intervals: order and brackets count.
    Tuple {
        open: char,
        close: char,
        items: Vec<Item>,
    },
    /// Sets, lists and unions: order does not count.
    Set(Vec<Item>),
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Number(String),
    Letter(char),
    Pi,
    Infinity,
    Fraction,
    Root,
    Function(Function),
    Separator,
    Symbol(char),
}

use Token::Symbol;

/// Reads the whole text; `None` if it is not of the grammar.
pub(super) fn parse(text: &str) -> Option<Item> {
    let tokens = tokens(text)?;
    let borders = borders(&tokens)?;
    let mut parser = Parser { tokens: &tokens, borders: &borders, at: 0, depth: 0, in_bars: false };
    let item = parser.list()?;
    (parser.at == tokens.len()).then_some(item)
}

fn command(name: &str) -> Option<Option<Token>> {
    Some(Some(match name {
        "frac" | "dfrac" | "tfrac" | "cfrac" => Token::Fraction,
        "sqrt" => Token::Root,
        "cdot" | "times" | "ast" => Symbol('*'),
        "div" => Symbol('/'),
        "pm" | "mp" => Symbol('±'),
        "pi" => Token::Pi,
        "infty" | "infinity" => Token::Infinity,
        "cup" => Token::Separator,
        "in" => Symbol('='),
        "circ" | "degree" => Symbol('°'),
        "sin" => Token::Function(Function::Sin),
        "cos" => Token::Function(Function::Cos),
        "tan" => Token::Function(Function::Tan),
        "ln" => Token::Function(Function::Ln),
        "log" => Token::Function(Function::Log),
        "exp" => Token::Function(Function::Exp),
        "or" | "and" => Token::Separator,
        "lvert" | "rvert" | "vert" => Symbol('|'),
        "left" | "right" | "big" | "Big" | "bigl" | "bigr" | "quad" | "qquad" | "text" | "mathrm" | "textbf"
        | "mathbf" | "mbox" | "displaystyle" | "textrm" => return Some(None),
        _ => return None,
    }))
}

fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut depth = 0usize;
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        if tokens.len() > MAX_TOKENS {
            return None;
        }
        let mut len = c.len_utf8();
        match c {
            '\\' => {
                let word = letters(&rest[1..]);
                len += word.len();
                if word.is_empty() {
                    let next = rest[1..].chars().next()?;
                    len += next.len_utf8();
                    match next {
                        // A set's braces are told apart from grouping braces.
                        '{' => tokens.push(Symbol('⟨')),
                        '}' => tokens.push(Symbol('⟩')),
                        '%' => tokens.push(Symbol('%')),
                        _ => {}
                    }
                } else if let Some(token) = command(word)? {
                    tokens.push(token);
                }
            }
            '0'..='9' | '.' => {
                let (number, used) = number(rest, depth == 0)?;
                len = used;
                tokens.push(Token::Number(number));
            }
            c if c.is_ascii_alphabetic() => {
                let word = letters(rest);
                len = word.len();
                push_word(word, &mut tokens)?;
            }
            'π' => tokens.push(Token::Pi),
            '∞' => tokens.push(Token::Infinity),
            '√' => tokens.push(Token::Root),
            '∪' => tokens.push(Token::Separator),
            '×' | '·' | '⋅' | '∙' => tokens.push(Symbol('*')),
            '*' if rest.starts_with("**") => {
                len = 2;
                tokens.push(Symbol('^'));
            }
            '÷' => tokens.push(Symbol('/')),
            ',' | ';' => tokens.push(Token::Separator),
            '(' | '[' => {
                depth += 1;
                tokens.push(Symbol(c));
            }
            ')' | ']' => {
                depth = depth.saturating_sub(1);
                tokens.push(Symbol(c));
            }
            '+' | '-' | '±' | '*' | '/' | '^' | '=' | '|' | '%' | '°' | '{' | '}' => tokens.push(Symbol(c)),
            '$' | '~' => {}
            c if c.is_whitespace() => {}
            _ => return None,
        }
        rest = &rest[len..];
    }
    Some(tokens)
}

fn letters(text: &str) -> &str {
    &text[..text.bytes().take_while(u8::is_ascii_alphabetic).count()]
}

// Short runs of letters are products of variables; longer ones are words, and words are not mathematics.
fn push_word(word: &str, tokens: &mut Vec<Token>) -> Option<()> {
    match word {
        "pi" | "sqrt" | "sin" | "cos" | "tan" | "ln" | "log" | "exp" | "or" | "and" | "infinity" => {
            tokens.extend(command(word)?);
        }
        "inf" | "nan" | "NaN" => return None,
        _ if word.len() <= 3 => tokens.extend(word.chars().map(Token::Letter)),
        _ => return None,
    }
    Some(())
}

// Digits with thousands groups (`1,000` outside brackets, `1{,}000` anywhere) and a fraction.
fn number(text: &str, commas: bool) -> Option<(String, usize)> {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes.get(from..).unwrap_or(&[]).iter().take_while(|b| b.is_ascii_digit()).count();
    let mut end = digits(0);
    if (1..=3).contains(&end) {
        loop {
            let gap = match &bytes[end..] {
                [b',', ..] if commas => 1,
                [b'{', b',', b'}', ..] => 3,
                _ => break,
            };
            if digits(end + gap) != 3 {
                break;
            }
            end += gap + 3;
        }
    }
    if bytes.get(end) == Some(&b'.') {
        let fraction = digits(end + 1);
        if fraction == 0 && end == 0 {
            return None;
        }
        end += 1 + fraction;
    }
    Some((text[..end].replace([',', '{', '}'], ""), end))
}

/// For each opening bracket: whether a separator stands directly inside it.
#[derive(Clone, Copy, Default)]
struct Border {
    is_list: bool,
}

fn borders(tokens: &[Token]) -> Option<Vec<Border>> {
    let mut borders = vec![Border::default(); tokens.len()];
    let mut open = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Symbol('(' | '[' | '{' | '⟨') => open.push(at),
            Symbol(')' | ']' | '}' | '⟩') => {
                open.pop()?;
            }
            Token::Separator => {
                if let Some(&inside) = open.last() {
                    borders[inside].is_list = true;
                }
            }
            _ => {}
        }
    }
    open.is_empty().then_some(borders)
}

struct Parser<'a> {
    tokens: &'a [Token],
    borders: &'a [Border],
    at: usize,
    depth: usize,
    in_bars: bool,
}

impl Parser<'_> {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn eat(&mut self, symbol: char) -> bool {
        let found = self.peek() == Some(&Symbol(symbol));
        self.at += usize::from(found);
        found
    }

    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    // Items between separators, up to a closing bracket or the end.
    fn items(&mut self) -> Option<Vec<Item>> {
        let mut items = vec![self.item()?];
        while self.peek() == Some(&Token::Separator) {
            while self.peek() == Some(&Token::Separator) {
                self.at += 1; // ", and" is one separator
            }
            items.push(self.item()?);
        }
        Some(items)
    }

    fn list(&mut self) -> Option<Item> {
        let mut items = self.items()?;
        if items.len() == 1 { items.pop() } else { Some(Item::Set(items)) }
    }

    fn item(&mut self) -> Option<Item> {
        if let [Token::Letter(name), Symbol('='), ..] = self.tokens[self.at..] {
            self.at += 2;
            return Some(Item::Named(name, Box::new(self.value()?)));
        }
        self.value()
    }

    fn value(&mut self) -> Option<Item> {
        match self.peek()? {
            Symbol('⟨') => {
                self.at += 1;
                let items = self.deeper(Self::items)?;
                return self.eat('⟩').then_some(Item::Set(items));
            }
            Symbol('{') if self.borders[self.at].is_list => {
                self.at += 1;
                let items = self.deeper(Self::items)?;
                return self.eat('}').then_some(Item::Set(items));
            }
            Symbol(open @ ('(' | '[')) if self.borders[self.at].is_list => {
                let open = *open;
                self.at += 1;
                let items = self.deeper(Self::items)?;
                let close = if self.eat(')') {
                    ')'
                } else if self.eat(']') {
                    ']'
                } else {
                    return None;
                };
                return Some(Item::Tuple { open, close, items });
            }
            _ => {}
        }
        let sign_len = usize::from(matches!(self.peek(), Some(Symbol('+' | '-'))));
        if self.tokens.get(self.at + sign_len) == Some(&Token::Infinity) {
            let negative = self.peek() == Some(&Symbol('-'));
            self.at += sign_len + 1;
            return Some(Item::Infinity { negative });
        }
        Some(Item::Scalar(self.deeper(Self::sum)?))
    }

    fn sum(&mut self) -> Option<Node> {
        let mut left = self.product()?;
        loop {
            let symbol = match self.peek() {
                Some(Symbol(c @ ('+' | '-' | '±'))) => *c,
                _ => return Some(left),
            };
            self.at += 1;
            let right = self.product()?;
            left = match symbol {
                '+' => Node::Add(Box::new(left), Box::new(right)),
                '-' => Node::Add(Box::new(left), Box::new(Node::Negative(Box::new(right)))),
                _ => Node::PlusMinus(Box::new(left), Box::new(right)),
            };
        }
    }

    fn product(&mut self) -> Option<Node> {
        let mut left = self.mixed_number()?;
        loop {
            if self.eat('*') {
                left = Node::Multiply(Box::new(left), Box::new(self.signed()?));
            } else if self.eat('/') {
                left = Node::Divide(Box::new(left), Box::new(self.signed()?));
            } else if self.starts_factor() {
                left = Node::Multiply(Box::new(left), Box::new(self.power()?));
            } else {
                return Some(left);
            }
        }
    }

    // An implicit product never has a number on its right: "1 2 3" is no product.
    fn starts_factor(&self) -> bool {
        match self.peek() {
            Some(Symbol('|')) => !self.in_bars,
            Some(Symbol('(' | '{')) => !self.borders[self.at].is_list,
            Some(Token::Letter(_) | Token::Pi | Token::Fraction | Token::Root | Token::Function(_)) => true,
            _ => false,
        }
    }

    // "1\frac{1}{2}" and "1 1/2" are one and a half.
    fn mixed_number(&mut self) -> Option<Node> {
        let whole = match (self.tokens.get(self.at), self.tokens.get(self.at + 1)) {
            (Some(Token::Number(n)), Some(Token::Fraction | Token::Number(_))) if !n.contains('.') => n.clone(),
            _ => return self.signed(),
        };
        self.at += 1;
        let fraction = match self.peek()? {
            Token::Fraction => self.power()?,
            _ => {
                let above = self.atom()?;
                if !self.eat('/') {
                    return None;
                }
                Node::Divide(Box::new(above), Box::new(self.atom()?))
            }
        };
        let plain = |n: &Node| matches!(n, Node::Number(_, Some(r)) if r.den == 1);
        let whole = literal(&whole)?;
        match &fraction {
            Node::Divide(above, below) if plain(above) && plain(below) => {
                Some(Node::Add(Box::new(whole), Box::new(fraction)))
            }
            // `2\frac{x}{3}` stays a product.
            _ => Some(Node::Multiply(Box::new(whole), Box::new(fraction))),
        }
    }

    fn signed(&mut self) -> Option<Node> {
        if self.eat('-') {
            let inner = self.deeper(Self::mixed_number)?;
            return Some(Node::Negative(Box::new(inner)));
        }
        if self.eat('+') {
            return self.deeper(Self::mixed_number);
        }
        if self.eat('±') {
            let inner = self.deeper(Self::mixed_number)?;
            return Some(Node::PlusMinus(Box::new(Node::Number(0.0, Some(Rational::integer(0)))), Box::new(inner)));
        }
        self.power()
    }

    fn power(&mut self) -> Option<Node> {
        let mut base = self.atom()?;
        loop {
            if self.eat('°') {
                continue;
            }
            if self.eat('%') {
                let hundred = Node::Number(100.0, Some(Rational::integer(100)));
                base = Node::Divide(Box::new(base), Box::new(hundred));
                continue;
            }
            break;
        }
        if !self.eat('^') {
            return Some(base);
        }
        // "90^\circ" and "90^{\circ}" are 90.
        if self.eat('°') {
            return Some(base);
        }
        if let [Symbol('{'), Symbol('°'), Symbol('}'), ..] = &self.tokens[self.at..] {
            self.at += 3;
            return Some(base);
        }
        let exponent = self.deeper(|parser| {
            if parser.eat('-') { Some(Node::Negative(Box::new(parser.power()?))) } else { parser.power() }
        })?;
        Some(Node::Power(Box::new(base), Box::new(exponent)))
    }

    fn atom(&mut self) -> Option<Node> {
        let token = self.peek()?.clone();
        self.at += 1;
        match token {
            Token::Number(text) => literal(&text),
            Token::Pi => Some(Node::Pi),
            Token::Letter('e') => Some(Node::E),
            Token::Letter(c) => Some(Node::Variable(c)),
            Token::Fraction => {
                // "\frac12": the tokens hold the digits together.
                if let Some(Token::Number(text)) = self.peek()
                    && text.len() == 2
                    && !text.contains('.')
                {
                    let (above, below) = (literal(&text[..1])?, literal(&text[1..])?);
                    self.at += 1;
                    return Some(Node::Divide(Box::new(above), Box::new(below)));
                }
                let above = self.argument()?;
                let below = self.argument()?;
                Some(Node::Divide(Box::new(above), Box::new(below)))
            }
            Token::Root => {
                let mut index = 2;
                if self.eat('[') {
                    let Some(Token::Number(text)) = self.peek() else { return None };
                    index = text.parse().ok().filter(|n| (2..=64).contains(n))?;
                    self.at += 1;
                    if !self.eat(']') {
                        return None;
                    }
                }
                Some(Node::Root(index, Box::new(self.argument()?)))
            }
            Token::Function(function) => {
                let argument = self.deeper(Self::power)?;
                Some(Node::Function(function, Box::new(argument)))
            }
            Symbol('(') => self.group(')'),
            Symbol('{') => self.group('}'),
            Symbol('[') => self.group(']'),
            Symbol('|') if !self.in_bars => {
                self.in_bars = true;
                let inner = self.deeper(Self::sum)?;
                self.in_bars = false;
                self.eat('|').then(|| Node::Absolute(Box::new(inner)))
            }
            _ => None,
        }
    }

    fn group(&mut self, close: char) -> Option<Node> {
        let in_bars = std::mem::replace(&mut self.in_bars, false);
        let inner = self.deeper(Self::sum)?;
        self.in_bars = in_bars;
        self.eat(close).then_some(inner)
    }

    // Argument of \frac and \sqrt: a group, or a single token ("\sqrt2").
    fn argument(&mut self) -> Option<Node> {
        self.deeper(Self::atom)
    }
}

fn literal(text: &str) -> Option<Node> {
    let value: f64 = text.parse().ok()?;
    Some(Node::Number(value, Rational::from_decimal(text)))
}
