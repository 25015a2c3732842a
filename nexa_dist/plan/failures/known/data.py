"""Known ways to fail of files and data. The order is the order of the search in a log."""

from __future__ import annotations

from nexa_dist.plan.failures.known.signature import row, says

DATA = (
    row(
        "no_data",
        "no data was named for this run, so NEXA_DATA is not set",
        "name it in train.yaml: data: {corpus: ./corpus}, which is then $NEXA_DATA/corpus",
        says("KeyError: 'NEXA_DATA'"),
    ),
    row(
        "read_only",
        "the place that was to be written is read-only: {detail}",
        "write below $NEXA_SCRATCH, $NEXA_SHARED or $NEXA_DURABLE; a disk that became read-only by itself has failed:"
        " nexa ssh NODE -- sudo dmesg",
        says("Read-only file system: '{detail}'", "Read-only file system"),
    ),
    row(
        "file_too_large",
        "a file became larger than its file system, or the process, may have it",
        "write it in parts (max_shard_size), or to another file system (nexa ssh NODE -- df -hT); a limit of the"
        " process is mended by resource.setrlimit",
        says("[Errno 27] File too large"),
    ),
    row(
        "file_locked",
        "a lock could not be had: {detail}",
        "a network file system often has none: keep caches and databases on the node's own disk ($NEXA_SCRATCH), one"
        ' for each rank; for HDF5 HDF5_USE_FILE_LOCKING: "FALSE" in env:',
        says(
            "sqlite3.OperationalError: {detail} is locked",
            "[Errno 37] {detail}",
            "(unable to lock file, errno = {detail},",
            "filelock._error.Timeout: {detail}",
        ),
    ),
    row(
        "nfs_busy",
        "a file that was removed is still open on the network file system: {detail}",
        "close it first, let one rank alone remove the folder, or keep what is removed on the node's own disk"
        " ($NEXA_SCRATCH)",
        says("Device or resource busy: '{detail}.nfs", "Directory not empty: '.nfs"),
    ),
    row(
        "ranks_collide",
        "it was made or removed already, by another rank or an earlier attempt: {detail}",
        "let one rank do it and the others wait (dist.barrier()), with os.makedirs(…, exist_ok=True); or a folder of"
        " its own for each rank",
        says(
            "FileExistsError: [Errno 17] File exists: {detail}",
            "[Errno 39] Directory not empty: {detail}",
            "[Errno 2] No such file or directory: {detail}' -> '",
        ),
    ),
    row(
        "inotify_limit",
        "the node's limit of watched files is used up",
        "watch fewer folders (of a development server switch the reload off), or nexa ssh NODE -- sudo sysctl"
        " fs.inotify.max_user_watches=524288",
        says("inotify watch limit reached", "inotify instance limit reached"),
    ),
    row(
        "not_text",
        "a file that was read as text is none, or of another encoding: {detail}",
        'look at it (nexa ssh NODE -- head -c 200 FILE); open it with encoding="utf-8", errors="replace", or in'
        " binary; a compressed file has to be unpacked",
        says("UnicodeDecodeError: {detail}"),
    ),
    row(
        "tokenizer_broken",
        "the file of the tokenizer is no SentencePiece model: half fetched, a pointer of git-lfs, or of another kind",
        "look at it (nexa ssh NODE -- ls -l FILE) and fetch it again; git lfs pull where it lies in a repository",
        says("ParseFromArray(serialized.data(), serialized.size())"),
    ),
    row(
        "no_chat_template",
        "the tokenizer has no chat template: that of a base model, mostly",
        "set tokenizer.chat_template, or take the tokenizer of the model that was tuned to talk",
        says("because tokenizer.chat_template is not set"),
    ),
    row(
        "adapter_absent",
        "there is no adapter of PEFT there: {detail}",
        "name the folder that holds adapter_config.json; a model that was saved whole needs no adapter",
        says("Can't find 'adapter_config.json' at {detail}"),
    ),
    row(
        "image_broken",
        "an image cannot be read: {detail}",
        "leave that file out or fetch it again (its size on the node: nexa ssh NODE -- ls -l FILE); a dataset may skip"
        " what does not open",
        says(
            "cannot identify image file {detail}",
            "image file is truncated",
            "broken data stream when reading image file",
        ),
    ),
    row(
        "archive_broken",
        "an archive cannot be read: it is cut off, or no archive",
        "compare its size with the source (nexa ssh NODE -- ls -l FILE) and fetch it again; a page of a server in its"
        " place begins with <html>",
        says(
            "BadZipFile: ",
            "BadGzipFile: ",
            "tarfile.ReadError: ",
            "_lzma.LZMAError: ",
            "zlib.error: Error -",
        ),
    ),
    row(
        "data_malformed",
        "a data file is not in its format: {detail}",
        "compare its size with the source (nexa ssh NODE -- ls -l FILE) and fetch it again; rows whose type changes"
        " need one schema (features=)",
        says(
            "pyarrow.lib.ArrowInvalid: {detail}",
            "JSONDecodeError: {detail}",
            "(truncated file: {detail}",
            "(file signature not found)",
            "pandas.errors.ParserError: {detail}",
            "pyarrow.lib.ArrowTypeError: {detail}",
            "CastError: Couldn't cast",
        ),
    ),
    row(
        "dataset_stale",
        "the dataset is not what its description, or the cache of this node, says: {detail}",
        'load_dataset(…, download_mode="force_redownload"), verification_mode="no_checks" when the description is'
        " wrong, or a newer datasets: environment: {packages: [datasets>=VERSION]}",
        says(
            "ExpectedMoreSplits{detail}",
            "UnexpectedSplits{detail}",
            "NonMatchingSplitsSizesError: {detail}",
            "NonMatchingChecksumError: {detail}",
            "ExpectedMoreDownloadedFiles{detail}",
            "BuilderConfig {detail} not found",
            'ValueError: Unknown split "{detail}"',
        ),
    ),
    row(
        "dataset_empty",
        "the dataset is empty on this node, or this rank's part of it: {detail}",
        "look at what lies there (nexa ssh NODE -- ls -l FOLDER), at filters that take all away, and at parts: less"
        " files than ranks and workers leave some without",
        says(
            "num_samples should be a positive integer value, but got {detail}",
            "corresponds to no data",
            "EmptyDatasetError: {detail}",
            "ValueError: not enough values to unpack (expected 2, got 0)",
            "which is smaller than the number of shards{detail}",
        ),
    ),
    row(
        "dataset_script",
        "the dataset is a script, and this version of datasets runs none: {detail}",
        "take a copy of it as parquet (many have a branch refs/convert/parquet: revision=), or an older datasets:"
        " environment: {packages: [datasets<4]}",
        says(
            "Dataset scripts are no longer supported, but found {detail}", "trust_remote_code is not supported anymore"
        ),
    ),
    row(
        "language_data",
        "a package wants data that is fetched apart from it: {detail}",
        "bring it to every node before, below $NEXA_SHARED, and name that folder: NLTK_DATA in env:; a model of spaCy"
        " is a package, NAME @ ADDRESS in environment: {packages: […]}",
        says(
            "  Resource {detail} not found.",
            "OSError: [E050] Can't find model {detail}.",
            "Please use the NLTK Downloader",
        ),
    ),
    row(
        "no_display",
        "the program wants a screen, and a node has none",
        "for matplotlib MPLBACKEND: Agg in env:; for Qt QT_QPA_PLATFORM: offscreen; opencv-python-headless instead of"
        " opencv-python",
        says(
            "no display name and no $DISPLAY",
            "Qt platform plugin could be initialized",
            "could not connect to display",
            "cannot load backend 'TkAgg'",
        ),
    ),
    row(
        "locale_missing",
        "the program prints or reads more than ASCII, and the node's locale has no more",
        'PYTHONUTF8: "1" and LC_ALL: C.UTF-8 in env:',
        says(
            "UnicodeEncodeError: 'ascii' codec",
            "UnicodeEncodeError: 'latin-1' codec",
            "locale.Error: unsupported locale",
        ),
    ),
    row(
        "config_invalid",
        "a config of the program is not as it should be: {detail}",
        "mend the file, or the arguments that change it (args in train.yaml); what is sent is what git knows of it",
        says(
            "^omegaconf.errors.{detail}",
            "^hydra.errors.{detail}",
            "Error merging override {detail}",
            "^yaml.scanner.{detail}",
            "^yaml.parser.{detail}",
            "pydantic_core._pydantic_core.ValidationError: {detail}",
            "jsonschema.exceptions.ValidationError: {detail}",
            "^tomllib.TOMLDecodeError: {detail}",
        ),
    ),
)
