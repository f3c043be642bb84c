//! The mutants that cargo-mutants would try, from its `--list --json`.

use std::collections::HashMap;

use serde_json::Value;

/// What kind of change a mutant is, as cargo-mutants names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Genre {
    /// A function's body is a value.
    FnValue,
    /// Another operator between two operands.
    BinaryOperator,
    /// No operator before its operand.
    UnaryOperator,
    /// No such arm.
    MatchArm,
    /// An arm's guard always or never holds.
    MatchArmGuard,
    /// A field has the value of the struct's base.
    StructField,
}

/// A place in a file: line and column, in characters, both from 1.
pub type Place = (usize, usize);

/// One change of the source.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// What switches it on; from 1, in the order of the list.
    pub number: u32,
    /// cargo-mutants' name of it, with the place.
    pub name: String,
    /// The name without the place; where a file has several of that name, with which of them it is: stays what it is
    /// when lines are added elsewhere.
    pub lasting: String,
    /// The file, from the workspace's root.
    pub file: String,
    /// Where what is replaced begins.
    pub start: Place,
    /// What it is replaced with.
    pub replacement: String,
    /// Its kind.
    pub genre: Genre,
}

/// Reads the list. Errors: what in it is not as cargo-mutants 27 writes it.
pub fn read(text: &str) -> Result<Vec<Mutant>, String> {
    let list: Value =
        serde_json::from_str(text).map_err(|e| format!("the list of mutants: {e}"))?;
    let entries = list.as_array().ok_or("the list of mutants is no list")?;
    let mut mutants = Vec::with_capacity(entries.len());
    for (entry, number) in entries.iter().zip(1..) {
        let read = one(entry, number);
        mutants.push(
            read.ok_or_else(|| format!("no mutant as cargo-mutants 27 lists them: {entry}"))?,
        );
    }
    number_those_of_one_name(&mut mutants);
    Ok(mutants)
}

fn one(entry: &Value, number: u32) -> Option<Mutant> {
    let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let at = |key: &str| {
        let of = |part: &str| entry.get("span")?.get(key)?.get(part)?.as_u64();
        Some((
            usize::try_from(of("line")?).ok()?,
            usize::try_from(of("column")?).ok()?,
        ))
    };
    let name = text("name")?;
    let file = text("file")?;
    let start = at("start")?;
    let change = name.strip_prefix(&format!("{file}:{}:{}: ", start.0, start.1))?;
    Some(Mutant {
        number,
        lasting: format!("{file}: {change}"),
        file,
        start,
        replacement: text("replacement")?,
        genre: match entry.get("genre")?.as_str()? {
            "FnValue" => Genre::FnValue,
            "BinaryOperator" => Genre::BinaryOperator,
            "UnaryOperator" => Genre::UnaryOperator,
            "MatchArm" => Genre::MatchArm,
            "MatchArmGuard" => Genre::MatchArmGuard,
            "StructField" => Genre::StructField,
            _ => return None,
        },
        name,
    })
}

fn number_those_of_one_name(mutants: &mut [Mutant]) {
    // The list goes through a file in the parser's order, which is not always that of the places.
    let mut places: HashMap<String, Vec<Place>> = HashMap::new();
    for mutant in mutants.iter() {
        places
            .entry(mutant.lasting.clone())
            .or_default()
            .push(mutant.start);
    }
    for of_one_name in places.values_mut() {
        of_one_name.sort_unstable();
    }
    for mutant in mutants {
        let of_one_name = &places[&mutant.lasting];
        if let (true, Some(index)) = (
            of_one_name.len() > 1,
            of_one_name.iter().position(|at| *at == mutant.start),
        ) {
            mutant.lasting = format!("{} [{}]", mutant.lasting, index + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(line: u32, column: u32) -> String {
        format!(
            r#"{{"name": "a/b.rs:{line}:{column}: replace > with >= in f", "package": "a", "file": "a/b.rs", "function": null,
                "span": {{"start": {{"line": {line}, "column": {column}}}, "end": {{"line": {line}, "column": 9}}}},
                "replacement": ">=", "genre": "BinaryOperator"}}"#
        )
    }

    #[test]
    fn those_of_one_name_are_told_apart_by_their_order_in_the_file() {
        let read = read(&format!("[{}, {}]", entry(9, 4), entry(2, 7))).unwrap();
        assert_eq!(read[0].lasting, "a/b.rs: replace > with >= in f [2]");
        assert_eq!(read[1].lasting, "a/b.rs: replace > with >= in f [1]");
        assert_eq!((read[0].number, read[1].number), (1, 2));
        assert_eq!(read[1].start, (2, 7));
    }

    #[test]
    fn a_list_of_another_form_is_refused() {
        assert!(read("{}").is_err());
        assert!(
            read(&format!(
                "[{}]",
                entry(1, 1).replace("BinaryOperator", "Other")
            ))
            .is_err()
        );
        assert!(read(&format!("[{}]", entry(1, 1).replace("a/b.rs:1", "c.rs:1"))).is_err());
    }
}
