"""Looking at a run before it is made: `Trainer.check`, `Trainer.find_lr`, `fit(debug=...)`."""
