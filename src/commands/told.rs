//! What the log was told last, so that what goes wrong at every attempt is told once.

/// See the module.
#[derive(Debug, Default)]
pub struct Told(Option<String>);

impl Told {
    /// Takes what there is to tell; whether it is something else than the last time.
    pub fn is_news(&mut self, text: &str) -> bool {
        let is_news = self.0.as_deref() != Some(text);
        if is_news {
            self.0 = Some(text.to_owned());
        }
        is_news
    }

    /// All is well again; whether there was something to tell before.
    pub fn forget(&mut self) -> bool {
        self.0.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_is_told_once_until_all_was_well_in_between() {
        let mut told = Told::default();
        assert!(!told.forget());
        assert!(told.is_news("a") && !told.is_news("a") && told.is_news("b") && told.is_news("a"));
        assert!(told.forget() && told.is_news("a"));
    }
}
