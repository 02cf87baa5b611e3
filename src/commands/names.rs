//! Names that nobody has: which of those there are is meant.

/// How many are named.
const NAMED_MAX: usize = 3;
/// How like the other one a name has to be, from 0 to 1.
const LIKENESS_MIN: f64 = 0.7;

/// `did you mean "a" or "b"? ` with the names that are most like this one, or nothing where none is.
pub fn nearest<'n>(name: &str, there_are: impl Iterator<Item = &'n str>) -> String {
    let wanted = name.to_lowercase();
    let mut near: Vec<(f64, &str)> = there_are
        .map(|other| {
            let other_name = other.to_lowercase();
            let likeness = strsim::jaro_winkler(&wanted, &other_name);
            // `orders` and `public.orders` are meant for one another.
            let is_part = wanted.len() > 2 && (other_name.contains(&wanted) || wanted.contains(&other_name));
            (if is_part { likeness.max(LIKENESS_MIN) } else { likeness }, other)
        })
        .filter(|(likeness, _)| *likeness >= LIKENESS_MIN)
        .collect();
    near.sort_by(|(a, one), (b, other)| b.total_cmp(a).then_with(|| one.cmp(other)));
    near.dedup_by(|(_, one), (_, other)| one == other);
    let named: Vec<_> = near.into_iter().take(NAMED_MAX).map(|(_, name)| format!("{name:?}")).collect();
    if named.is_empty() { String::new() } else { format!("did you mean {}? ", named.join(" or ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_names_are_named_and_no_others() {
        let names = ["orders", "order_items", "customers", "public.invoices"];
        let nearest = |name| nearest(name, names.into_iter());
        assert_eq!(nearest("ordres"), "did you mean \"orders\"? ");
        assert_eq!(nearest("order"), "did you mean \"orders\" or \"order_items\"? ");
        assert_eq!(nearest("Customer"), "did you mean \"customers\"? ");
        assert_eq!(nearest("invoices"), "did you mean \"public.invoices\"? ");
        assert_eq!(nearest("zzz"), "");
    }
}
