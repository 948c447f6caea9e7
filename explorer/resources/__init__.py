"""What the pages show, as plain values that JSON can hold: one function `(library, arguments) -> dict` per resource.

The server answers `/api/PATH` with them, and a report has them as files. `routes.py` is the list of all, and this is
the list of their shapes. Floats are as they are in the tables; null stands for null, NaN and infinity. A key is the
first 16 digits of an artifact's key. A resource that is not there raises `Absent` (404), one that cannot be read
`Damaged` (409), and a wrong argument `UserError` (400), each a sentence that the page shows.

    VIEWHEAD = {key, label, sae, sae_key, experiment, experiments, evaluation, backbone, dataset, split, n_images,
                n_latents, n_classes, image_set}
        A view is an SAE applied to a dataset's split with a backbone: one artifact of the stage `statistics`. `label`
        tells it from all other views. Names are null where no record of an experiment is left. `image_set` is the
        key of the index of its images; views with the same one show the same pictures.
    EXAMPLE  = {rank, image, activation, token, token_activation, label, class_name, source, width, height, box}
        `box`: the part of the picture that the model sees, [x0, y0, x1, y1] in shares of width and height.
    LAYOUT   = {prefix, grid: [rows, columns], suffix, prefix_names, suffix_names}
        Token t < prefix is a prefix cell, then patches row by row, then the suffix.

    home -> {version, store, mode: "server" | "report", problems: [sentence], advice: sentence | null,
             experiments: [{name, updated: ISO time, earlier: bool, nodes: [{address, stage, name, key,
                 state: "committed" | "running" | "partial" | "damaged" | "absent", inputs: {role: address},
                 summary, names: {dataset, backbone, sae, evaluation}, made: ISO time | null}]}],
             views: [VIEWHEAD],
             saes: [{key, name, experiments, objective, n_latents, d, dataset, backbone, views: [key], training}],
             comparisons: [{kind: "remapping" | "matching", key, name, experiment, first, second}],
             report: {experiment, made: ISO time, left_out: [sentence], latents: {view: [those with a page]},
                 images: {view: [those with a page]}}   (in reports only, where store is null),
             frontiers: [{key, experiment, evaluation, rows: [{sae, sae_key, ...the columns of `frontier`}], picked}]}
        `advice` says what to run if there is nothing to see. `picked` is the sae_key of the SAE with the lowest FVU.
    view/VIEW -> VIEWHEAD and {columns: [{name, type, sentence, table}], layout: LAYOUT | null, tau,
             classes: number | null, gallery: bool, masking: [{key, name}], remapping: [{key, name}],
             siblings: [VIEWHEAD of the same SAE], words: bool, pictures: bool, pictures_why: sentence | null, truth: bool,
             attributes: [name]}
    classes/VIEW -> {classes: [{id, name, n_images}]}
    training/SAE -> {sae, name, running, columns: {step: [], ...}}             at most 1000 steps, evenly spaced
    latents/VIEW/rows ? where, sort, offset, limit, class, words, columns
          -> {n_latents, n_matched, columns: [name], rows: [[value]]}
        Columns are those of `latents`, and those of other tables with a row per latent, as `matching.nearest_cosine`
        (joined.py); with `class` also what remappings say of it. `where`: conditions joined by `;`, each `column OP value`, OP one of < <= > >= = != ~, value a number, true,
        false, null, or text; ~ means that a text contains the value, in capitals or not. `sort`: a column, `-column` for the largest first; nulls are last. `class` adds the
        columns class_n_images, class_n_tokens and class_mean_activation; `words` adds word_score and sorts by it.
    latents/VIEW/column/NAME ? class, words -> {name, values: [one per latent]}
    latent/VIEW/ID -> {latent, n_latents, row: {column: value}, top: [EXAMPLE],
             examples: [{name, low, high, images: [EXAMPLE]}], histogram: {low, high, n_tokens} | null,
             classes: [{class, name, n_images, n_tokens, mean_activation, share}], n_classes,
             cofiring: [{latent, n_both, jaccard, ...}] | null,
             siblings: [{view, label, backbone, dataset, row}], previous, next}
        `share`: of the class's images in the split, those that fire the latent. `previous` and `next` are alive.
        `examples` are the gallery's bands of quantiles, `siblings` at most 24 views, those of the same images first.
    class/VIEW/CLASS -> {class, name, n_images, latents: [{latent, n_images, n_tokens, mean_activation, frequency,
             share}], images: [EXAMPLE without rank, activation, token and token_activation],
             masking: [{key, name, curves: [CURVE], references: [REFERENCE], all: {curves, references}}]}
        CURVE = {selection, mode, statistics: key | null, points: [{k, accuracy, ci_low, ci_high}]}
        REFERENCE = {name: "original" | "reconstruction", accuracy, ci_low, ci_high}
    remapping/KEY -> {key, name, experiment, first: VIEWHEAD | null, second: VIEWHEAD | null, upper, lower,
             classes: [{class, name, high, high_to_low, low_to_high, kept, added, removed}],
             summary: [{...the columns of `remapping`}], ks: [number | null]}
    remapping/KEY/class/CLASS -> {class, name, U, L, points: [{latent, x, y, group, activity}],
             predictions: [{model, k, predicted, name, n}]}
    matching/KEY -> {key, name, experiment, first, second: {sae, sae_key, views: [VIEWHEAD]},
             summary: [{...the columns of `matching`}], n}
    matching/KEY/rows ? side, where, sort, offset, limit -> as latents/VIEW/rows
    tables -> {tables: [{name, columns: [{name, type, sentence}], n_artifacts}]}
    sql ? q, experiment -> {columns, types, rows, n_rows, truncated, warnings: [sentence]}
        At most 1000 rows of the n_rows that there are. `/sql.csv` and `/sql.parquet` download a million at most.

Those of own images and pictures:

    neighbours/VIEW/ID -> {neighbours: [{latent, cosine, dead}]}
    maps/VIEW/ID ? images -> {layout, max, maps: {image: [value per token]}}
    image/VIEW/ROW -> {image: row | null, upload: id | null, source, label, class_name, classes: [{id, name}], split,
             width, height, box, layout, prediction: [{class, name, p, logit}], prediction_why: sentence | null,
             latents: [{latent, activation, token, token_activation, frequency, label_entropy}],
             problem: sentence | null, attributes: [{attribute, value}], truth: bool}
        `problem` says why there are no latents, and `prediction_why` why there is no prediction.
    codes/VIEW/ROW -> {n_tokens, tokens: [], latents: [], values: [], n_left_out}
    POST upload/VIEW -> {id};  upload/VIEW/ID and upload-codes/VIEW/ID as image and codes
    POST predict/VIEW {image: row} or {upload: id}, and edits: [{latent, value, tokens: null | [token]}],
             error: "kept" | "dropped" -> {before, after: as `prediction`, flipped}
    flips/VIEW/CLASS ? k -> {ks, images: [EXAMPLE without rank, activation, token and token_activation, and predicted,
             first_k: number | null, to: name | null], why: sentence if there is no classifier | null}
        Those that flip first come first.
"""
