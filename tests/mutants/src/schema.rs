//! A source file in which each mutant is a switch.
//!
//! Only one mutant is ever on, so what one changes is written out once, without the switches of others in it, before the
//! text that has them:
//!
//! ```text
//! a + f(b - 1)    ->    (if on(1) { a - f(b - 1) } else { a + f((if on(2) { b + 1 } else { b - 1 })) })
//! ```
//!
//! The text of a mutant is what cargo-mutants would compile: an operator is replaced in the whole chain of operators
//! that it is in, so that what binds tighter afterwards is what would in the file.

use std::collections::HashMap;
use std::ops::Range;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{BinOp, Block, Expr, ExprBinary, ExprMatch, ExprStruct, ExprUnary, UnOp};

use crate::list::{Genre, Mutant, Place};

/// What the switch is called from everywhere.
const ON: &str = "kagami_bitmap::mutant::on";

/// Why a mutant has no switch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Without {
    /// The language forbids what it makes.
    Forbidden,
    /// A switch is no constant.
    InAConstant,
    /// Not where the list says that it is, or nothing that this tool knows.
    NotFound,
}

/// A file with its switches.
pub struct Schema {
    /// The text of it.
    pub text: String,
    /// Where in it each mutant's own text is.
    pub own: Vec<(u32, Range<usize>)>,
    /// Where in it what is switched is, with all that can be switched there.
    pub sites: Vec<(Range<usize>, Vec<u32>)>,
    /// Those that have no switch.
    pub without: Vec<(u32, Without)>,
}

/// Puts the mutants of one file into its source.
pub fn write(source: &str, mutants: &[&Mutant], crate_of_bitmap: bool) -> Result<Schema, String> {
    let file = syn::parse_file(source).map_err(|e| e.to_string())?;
    let mut at: HashMap<(Genre, Place), Vec<&Mutant>> = HashMap::new();
    for mutant in mutants {
        at.entry((mutant.genre, mutant.start))
            .or_default()
            .push(mutant);
    }
    let mut finder = Finder {
        source,
        on: if crate_of_bitmap {
            ON.replacen("kagami_bitmap", "crate", 1)
        } else {
            ON.to_owned()
        },
        at,
        constant: false,
        sites: Vec::new(),
        without: Vec::new(),
    };
    finder.visit_file(&file);
    let mut without = finder.without;
    without.extend(
        finder
            .at
            .values()
            .flatten()
            .map(|mutant| (mutant.number, Without::NotFound)),
    );
    let mut schema = render(source, &finder.sites);
    schema.without = without;
    Ok(schema)
}

/// Something that can be switched: what stands before and after it, in pieces.
struct Site {
    /// What the pieces surround, in the source.
    range: Range<usize>,
    /// Before it; a piece that is a mutant's own has its number.
    before: Vec<(Option<u32>, String)>,
    /// After it.
    after: &'static str,
    mutants: Vec<u32>,
}

struct Finder<'a> {
    source: &'a str,
    on: String,
    at: HashMap<(Genre, Place), Vec<&'a Mutant>>,
    constant: bool,
    sites: Vec<Site>,
    without: Vec<(u32, Without)>,
}

impl<'a> Finder<'a> {
    /// Takes the mutants of a kind that begin where this span does.
    fn take(&mut self, genre: Genre, span: proc_macro2::Span) -> Vec<&'a Mutant> {
        let start = span.start();
        let mutants = self
            .at
            .remove(&(genre, (start.line, start.column + 1)))
            .unwrap_or_default();
        if self.constant {
            self.refuse(&mutants, Without::InAConstant);
            return Vec::new();
        }
        mutants
    }

    fn refuse(&mut self, mutants: &[&Mutant], why: Without) {
        self.without
            .extend(mutants.iter().map(|mutant| (mutant.number, why)));
    }

    /// An expression that is switched as a whole: each mutant puts its replacement for its part.
    fn expression(&mut self, whole: Range<usize>, mutants: Vec<(&'a Mutant, Range<usize>)>) {
        let mut before = vec![(None, "(".to_owned())];
        let mut numbers = Vec::new();
        for (mutant, part) in mutants {
            let changed = format!(
                "{}{}{}",
                &self.source[whole.start..part.start],
                mutant.replacement,
                &self.source[part.end..whole.end]
            );
            if syn::parse_str::<Expr>(&changed).is_err() {
                self.refuse(&[mutant], Without::Forbidden);
                continue;
            }
            before.push((None, format!("if {}({}) {{ ", self.on, mutant.number)));
            before.push((Some(mutant.number), changed));
            before.push((None, " } else ".to_owned()));
            numbers.push(mutant.number);
        }
        if numbers.is_empty() {
            return;
        }
        before.push((None, "{ ".to_owned()));
        self.sites.push(Site {
            range: whole,
            before,
            after: " })",
            mutants: numbers,
        });
    }

    fn body(&mut self, block: &Block) {
        let (Some(first), Some(last)) = (block.stmts.first(), block.stmts.last()) else {
            return;
        };
        let range = first.span().byte_range().start..last.span().byte_range().end;
        let mutants = self.take(Genre::FnValue, first.span());
        if mutants.is_empty() {
            return;
        }
        let mut before = Vec::new();
        for mutant in &mutants {
            before.push((
                None,
                format!("if {}({}) {{ return ", self.on, mutant.number),
            ));
            before.push((Some(mutant.number), mutant.replacement.clone()));
            before.push((None, "; } ".to_owned()));
        }
        let mutants = mutants.iter().map(|mutant| mutant.number).collect();
        self.sites.push(Site {
            range,
            before,
            after: "",
            mutants,
        });
    }

    fn in_constant(&mut self, visit: impl FnOnce(&mut Self)) {
        let outside = std::mem::replace(&mut self.constant, true);
        visit(self);
        self.constant = outside;
    }

    /// The operators of a chain without parentheses, and the operands between them.
    fn chain<'e>(
        expr: &'e ExprBinary,
        operators: &mut Vec<&'e BinOp>,
        operands: &mut Vec<&'e Expr>,
    ) {
        for (side, is_right) in [(&*expr.left, false), (&*expr.right, true)] {
            if is_right {
                operators.push(&expr.op);
            }
            if let Expr::Binary(binary) = side {
                Self::chain(binary, operators, operands);
            } else {
                operands.push(side);
            }
        }
    }

    /// The `&&` of a chain that binds names can't be switched, nor can they be anything else; what is between them can.
    fn let_chain(&mut self, expr: &Expr) {
        if let Expr::Binary(binary) = expr
            && matches!(binary.op, BinOp::And(_))
        {
            let mutants = self.take(Genre::BinaryOperator, binary.op.span());
            self.refuse(&mutants, Without::Forbidden);
            self.let_chain(&binary.left);
            self.let_chain(&binary.right);
        } else {
            self.visit_expr(expr);
        }
    }
}

fn binds_names(expr: &Expr) -> bool {
    match expr {
        Expr::Let(_) => true,
        Expr::Binary(binary) => binds_names(&binary.left) || binds_names(&binary.right),
        _ => false,
    }
}

impl<'ast> Visit<'ast> for Finder<'_> {
    fn visit_item_fn(&mut self, function: &'ast syn::ItemFn) {
        self.body(&function.block);
        visit::visit_item_fn(self, function);
    }

    fn visit_impl_item_fn(&mut self, function: &'ast syn::ImplItemFn) {
        self.body(&function.block);
        visit::visit_impl_item_fn(self, function);
    }

    fn visit_trait_item_fn(&mut self, function: &'ast syn::TraitItemFn) {
        if let Some(block) = &function.default {
            self.body(block);
        }
        visit::visit_trait_item_fn(self, function);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.in_constant(|finder| visit::visit_item_const(finder, item));
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.in_constant(|finder| visit::visit_impl_item_const(finder, item));
    }

    fn visit_trait_item_const(&mut self, item: &'ast syn::TraitItemConst) {
        self.in_constant(|finder| visit::visit_trait_item_const(finder, item));
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.in_constant(|finder| visit::visit_item_static(finder, item));
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.in_constant(|finder| visit::visit_variant(finder, variant));
    }

    fn visit_type(&mut self, of: &'ast syn::Type) {
        self.in_constant(|finder| visit::visit_type(finder, of));
    }

    fn visit_generic_argument(&mut self, argument: &'ast syn::GenericArgument) {
        self.in_constant(|finder| visit::visit_generic_argument(finder, argument));
    }

    fn visit_pat(&mut self, pattern: &'ast syn::Pat) {
        self.in_constant(|finder| visit::visit_pat(finder, pattern));
    }

    fn visit_expr_repeat(&mut self, repeat: &'ast syn::ExprRepeat) {
        self.visit_expr(&repeat.expr);
        self.in_constant(|finder| finder.visit_expr(&repeat.len));
    }

    fn visit_expr_binary(&mut self, binary: &'ast ExprBinary) {
        if binds_names(&binary.left) || binds_names(&binary.right) {
            let mutants = self.take(Genre::BinaryOperator, binary.op.span());
            self.refuse(&mutants, Without::Forbidden);
            self.let_chain(&binary.left);
            self.let_chain(&binary.right);
            return;
        }
        let (mut operators, mut operands) = (Vec::new(), Vec::new());
        Self::chain(binary, &mut operators, &mut operands);
        let mut mutants = Vec::new();
        for operator in operators {
            let part = operator.span().byte_range();
            mutants.extend(
                self.take(Genre::BinaryOperator, operator.span())
                    .into_iter()
                    .map(|mutant| (mutant, part.clone())),
            );
        }
        self.expression(binary.span().byte_range(), mutants);
        for operand in operands {
            self.visit_expr(operand);
        }
    }

    fn visit_expr_unary(&mut self, unary: &'ast ExprUnary) {
        if let UnOp::Not(_) | UnOp::Neg(_) = unary.op {
            let part = unary.op.span().byte_range();
            let mutants = self.take(Genre::UnaryOperator, unary.op.span());
            let mutants = mutants
                .into_iter()
                .map(|mutant| (mutant, part.clone()))
                .collect();
            self.expression(unary.span().byte_range(), mutants);
        }
        visit::visit_expr_unary(self, unary);
    }

    fn visit_expr_struct(&mut self, literal: &'ast ExprStruct) {
        let mut mutants = Vec::new();
        if literal.rest.is_some() {
            for pair in literal.fields.pairs() {
                let start = pair.value().span().byte_range().start;
                let end = pair
                    .punct()
                    .map_or(pair.value().span(), Spanned::span)
                    .byte_range()
                    .end;
                mutants.extend(
                    self.take(Genre::StructField, pair.value().span())
                        .into_iter()
                        .map(|mutant| (mutant, start..end)),
                );
            }
        }
        self.expression(literal.span().byte_range(), mutants);
        visit::visit_expr_struct(self, literal);
    }

    fn visit_expr_match(&mut self, of: &'ast ExprMatch) {
        // cargo-mutants also takes a `_` with a guard for one: without an arm of such a match values are missing.
        let is_catch_all =
            |arm: &syn::Arm| matches!(arm.pat, syn::Pat::Wild(_)) && arm.guard.is_none();
        let has_catch_all = of.arms.iter().any(is_catch_all);
        for arm in &of.arms {
            let end = arm.pat.span().byte_range().end;
            for mutant in self.take(Genre::MatchArm, arm.span()) {
                if !has_catch_all {
                    self.refuse(&[mutant], Without::Forbidden);
                    continue;
                }
                self.sites.push(Site {
                    range: end..end,
                    before: vec![
                        (None, " if ".to_owned()),
                        (
                            Some(mutant.number),
                            format!("!{}({})", self.on, mutant.number),
                        ),
                    ],
                    after: "",
                    mutants: vec![mutant.number],
                });
            }
            let Some((_, guard)) = &arm.guard else {
                continue;
            };
            let mutants = self.take(Genre::MatchArmGuard, guard.span());
            let (always, never): (Vec<_>, Vec<_>) = mutants
                .into_iter()
                .partition(|mutant| mutant.replacement == "true");
            let binds = binds_names(guard);
            let mut before = Vec::new();
            let mut numbers = Vec::new();
            for mutant in always {
                if binds {
                    // The names that it binds would be missing.
                    self.refuse(&[mutant], Without::Forbidden);
                } else {
                    before.push((
                        Some(mutant.number),
                        format!("{}({}) || ", self.on, mutant.number),
                    ));
                    numbers.push(mutant.number);
                }
            }
            for mutant in never {
                before.push((
                    Some(mutant.number),
                    format!("!{}({}) && ", self.on, mutant.number),
                ));
                numbers.push(mutant.number);
            }
            if numbers.is_empty() {
                continue;
            }
            if !binds {
                before.push((None, "(".to_owned()));
            }
            self.sites.push(Site {
                range: guard.span().byte_range(),
                before,
                after: if binds { "" } else { ")" },
                mutants: numbers,
            });
        }
        visit::visit_expr_match(self, of);
    }
}

/// Puts the pieces of all sites, which are within one another or apart, into the text.
fn render(source: &str, sites: &[Site]) -> Schema {
    enum Piece<'a> {
        Open(usize, &'a Site),
        Close(usize, &'a Site),
    }
    let mut pieces = Vec::new();
    for (index, site) in sites.iter().enumerate() {
        pieces.push((site.range.start, Piece::Open(index, site)));
        pieces.push((site.range.end, Piece::Close(index, site)));
    }
    // In one place: what ends there, the inner one first; what is nothing but a place; what begins there, the outer one first.
    pieces.sort_by_key(|(at, piece)| match piece {
        Piece::Close(index, site) if !site.range.is_empty() => {
            (*at, 0, usize::MAX - site.range.start, usize::MAX - index)
        }
        Piece::Open(index, site) if site.range.is_empty() => (*at, 1, *index, 0),
        Piece::Close(index, _) => (*at, 1, *index, 1),
        Piece::Open(index, site) => (*at, 2, usize::MAX - site.range.end, *index),
    });
    let mut text = String::with_capacity(source.len() * 2);
    let mut own = Vec::new();
    let mut begun = vec![0; sites.len()];
    let mut ranges = Vec::new();
    let mut done = 0;
    for (at, piece) in pieces {
        text.push_str(&source[done..at]);
        done = at;
        match piece {
            Piece::Open(index, site) => {
                begun[index] = text.len();
                for (number, piece) in &site.before {
                    let start = text.len();
                    text.push_str(piece);
                    own.extend(number.map(|number| (number, start..text.len())));
                }
            }
            Piece::Close(index, site) => {
                text.push_str(site.after);
                ranges.push((begun[index]..text.len(), site.mutants.clone()));
            }
        }
    }
    text.push_str(&source[done..]);
    Schema {
        text,
        own,
        sites: ranges,
        without: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mutant(number: u32, genre: Genre, start: Place, replacement: &str) -> Mutant {
        Mutant {
            number,
            name: String::new(),
            lasting: String::new(),
            file: String::new(),
            start,
            replacement: replacement.to_owned(),
            genre,
        }
    }

    /// The text after the function's `{ `, with short switches, and those without one.
    fn written(body: &str, mutants: &[Mutant]) -> (String, Vec<(u32, Without)>) {
        let source = format!("fn f() {{\n{body}\n}}\n");
        let mutants: Vec<&Mutant> = mutants.iter().collect();
        let schema = write(&source, &mutants, true).unwrap();
        assert!(syn::parse_file(&schema.text).is_ok(), "{}", schema.text);
        for (_, range) in schema.own.iter().chain(
            &schema
                .sites
                .iter()
                .map(|(range, of)| (of[0], range.clone()))
                .collect::<Vec<_>>(),
        ) {
            assert!(schema.text.get(range.clone()).is_some());
        }
        let text = schema.text.replace("crate::mutant::on", "on");
        let body = text
            .strip_prefix("fn f() {\n")
            .unwrap()
            .strip_suffix("\n}\n")
            .unwrap();
        (body.to_owned(), schema.without)
    }

    use Genre::{BinaryOperator, FnValue, MatchArm, MatchArmGuard, StructField, UnaryOperator};

    #[test]
    fn a_mutant_is_written_out_beside_what_has_the_switches_of_the_others() {
        let (text, without) = written(
            "a + g(b - 1)",
            &[
                mutant(1, FnValue, (2, 1), "0"),
                mutant(2, BinaryOperator, (2, 3), "-"),
                mutant(3, BinaryOperator, (2, 3), "*"),
                mutant(4, BinaryOperator, (2, 9), "+"),
            ],
        );
        assert_eq!(
            text,
            "if on(1) { return 0; } (if on(2) { a - g(b - 1) } else if on(3) { a * g(b - 1) } \
             else { a + g((if on(4) { b + 1 } else { b - 1 })) })"
        );
        assert!(without.is_empty());
    }

    #[test]
    fn an_operator_is_replaced_in_its_whole_chain() {
        // The second `||` as `&&` binds before the first.
        let (text, _) = written(
            "a || b || !c",
            &[
                mutant(1, BinaryOperator, (2, 8), "&&"),
                mutant(2, UnaryOperator, (2, 11), ""),
            ],
        );
        assert_eq!(
            text,
            "(if on(1) { a || b && !c } else { a || b || (if on(2) { c } else { !c }) })"
        );
    }

    #[test]
    fn what_the_language_forbids_has_no_switch() {
        let (text, without) = written(
            "if let Some(x) = y && a == b {}",
            &[
                mutant(1, BinaryOperator, (2, 20), "||"),
                mutant(2, BinaryOperator, (2, 25), "!="),
            ],
        );
        assert_eq!(
            text,
            "if let Some(x) = y && (if on(2) { a != b } else { a == b }) {}"
        );
        assert_eq!(without, [(1, Without::Forbidden)]);
        let (text, without) = written(
            "const A: u8 = 1 + 2;",
            &[mutant(1, BinaryOperator, (2, 17), "-")],
        );
        assert_eq!(text, "const A: u8 = 1 + 2;");
        assert_eq!(without, [(1, Without::InAConstant)]);
        let (_, without) = written("a + b", &[mutant(1, BinaryOperator, (2, 1), "-")]);
        assert_eq!(without, [(1, Without::NotFound)]);
    }

    #[test]
    fn arms_go_by_a_guard() {
        let (text, _) = written(
            "match a { 1 => b, c if c > 4 => d, _ => e }",
            &[
                mutant(1, MatchArm, (2, 11), ""),
                mutant(2, MatchArmGuard, (2, 24), "true"),
                mutant(3, MatchArmGuard, (2, 24), "false"),
                mutant(4, BinaryOperator, (2, 26), ">="),
            ],
        );
        assert_eq!(
            text,
            "match a { 1 if !on(1) => b, c if on(2) || !on(3) && ((if on(4) { c >= 4 } else { c > 4 })) => d, _ => e }"
        );
    }

    #[test]
    fn a_field_is_the_bases() {
        let (text, _) = written("S { a: 1, ..s }", &[mutant(1, StructField, (2, 5), "")]);
        assert_eq!(text, "(if on(1) { S {  ..s } } else { S { a: 1, ..s } })");
    }
}
