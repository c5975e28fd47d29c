"""From a user's files to what a training step computes on.

Everything here is plain Python and numpy; torch is never imported, so that data can be checked, shown and fuzzed in
a fraction of a second, by the command line and by anything else. Each arrow is one module:

    bytes ──sources──▶ Record ──conversations──▶ Conversation ──segments, template──▶ Segments (text, learned or not)
      ──tokens, tokenizer──▶ Example (tokens, learned) ──examples: overlong, split──▶ Dataset
      ──order──▶ the samples of step k ──packing──▶ Packs (tokens, targets, positions, document starts)

    records     the types that flow, each with the place in a file that it came from
    sources     files, folders, globs and hub ids, read with line numbers
    sources_stream, sources_json, sources_tables, sources_hub   each kind of them; naming: what files' names say
    mixture     several sources, with weights or counts
    conversations   rows to conversations, one by one
    shapes, columns, turns, content   what columns mean, found by looking or named by the recipe; turns; what they say
    template    the chat template, rendered in a sandbox
    segments    which text of a rendered conversation is learned, which only read, and how much it weighs
    masks, thinking   text that spells control tokens; reasoning in answers
    tokenizer   a model folder's tokenizer, special tokens and stop tokens
    tokens      segments to tokens: one function for training, chat and evaluation
    reading     the records of a data set with their numbers, and what its files hold
    words       tokens of whole words, remembered: what makes encoding fast
    encoding    records to chunks of encoded samples
    workers     the same in several processes
    store       encoded samples as one file, mapped into memory
    store_text  conversations as the text in it
    samples     a store's samples as a sequence, and arrays of what all are like
    marks       what is noticed about every sample while it is encoded
    digests     what a conversation says and asks, to find what is there twice
    examples    all of it for a whole file, every record accounted for
    accounting  what is refused, counted, and when it is too much
    overlong, split   what happens to samples that are too long; which samples are held out
    order       randomness without a state: the samples of step k follow from the seed and k
    packing     samples to packs, never split and never padded
    prefixes    beginnings that samples share, computed once a pack
    cache       stores, kept between commands
    checks      refusals that save a run
    preview     what is learned, for the eye, token by token
    counts, lengths   a data set counted: by source and reason, by length and limit
    prompts     the prompt that was trained beside the prompt that chat sends
    findings    what is noticed about a data set
    lint        what is wrong with it, and what of that can be repaired
    problems    the arithmetic problems of the demo

Three promises are kept here: the prompt that chat sends is token for token the prompt that was trained; every learned
answer ends in a learned stop token; and records read = examples + refusals, each refusal with its reason and place.
"""
