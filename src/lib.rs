//! preheat makes every cold start warm: model weights are on the node, whole, checked and in memory, before the process that
//! needs them starts.
//!
//! This page is the map. `tests/it/architecture.rs` reads the table below and fails on a module that it does not name, on a
//! `use crate::` that climbs, and on `unsafe` outside `sys`; so the map is true, and a change of the house begins here.
//!
//! # Floors
//!
//! A module may use those on lower floors. Modules of one floor do not know each other, but for the neighbours named under
//! *beside*; `not` names one below that it must not know.
//!
//! <!-- floors: ground first -->
//!
//! | floor  | module      | beside           | what it is |
//! |--------|-------------|------------------|------------|
//! | ground | `base`      |                  | error kinds, units, boot identity, lifecycle: no policy, no network |
//! | ground | `digest`    | `base`           | BLAKE3 by groups out of order, merged to the root; origins' digests; verified bytes |
//! | ground | `sys`       | `base`           | the kernel and the only `unsafe`: buffers, disk hands, durable rename, clone, page cache |
//! | ground | `telemetry` | `base`           | logs and metrics, each metric's name, unit and stability in one place |
//! | 1      | `model`     |                  | nouns: reference, manifest, selection, keys, and the port that sources of bytes implement |
//! | 2      | `origin`    |                  | bytes elsewhere: one folder per kind of origin, one conformance suite for all |
//! | 2      | `store`     |                  | bytes at rest: layout, partials, sealing, pins, space, eviction, recovery, scrub |
//! | 3      | `transfer`  | not `origin`     | bytes in motion: plan, schedule, flights, pace, retry; sources only as `dyn RangeSource` |
//! | 4      | `access`    |                  | who may read what: identities, proofs, grants, quotas |
//! | 4      | `engines`   |                  | compiled engines: fingerprint, profiles, bundles, trust, and the run that proves their use |
//! | 4      | `placement` |                  | plain files at a place: a directory hashed, published into an origin, taken into a store |
//! | 5      | `prewarm`   |                  | the job that takes a reference to a warm model, and what it answers meanwhile |
//! | roof   | `doors`     |                  | inbound: HTTP over TCP and the local socket, limits, problem documents, client |
//! | roof   | `config`    | `doors`          | assembles every module's `Config`; reports all problems at once |
//! | roof   | `daemon`    | `config` `doors` | the one file that knows everyone: builds a node, runs it, drains it |
//! | roof   | `cli`       | `config` `daemon` `doors` | one file per verb |
//! | roof   | `main`      | `cli`            | allocator, TLS provider, `cli::main`; nothing else |
//!
//! <!-- floors end -->
//!
//! # Glossary
//!
//! One word, one meaning, here and in every message, metric and path.
//!
//! | word | meaning |
//! |------|---------|
//! | alias | a link for people from a moving reference to the tree it last resolved to; never what a process is given |
//! | blob | sealed bytes, named by their BLAKE3 root; a name exists only once every byte is verified |
//! | door | inbound adapter: how others ask preheat |
//! | durable | synced with its directory: survives a power cut. *Readable* bytes are verified too, and survive only a crash |
//! | engine | a compiled inference engine; never anything that does I/O |
//! | bundle | the stored files of an engine: a document, a pack, perhaps a signature |
//! | flight | the one running transfer of one object, with everybody who waits for it |
//! | group | the unit of hashing: 1 MiB, so that any range can be proved without the rest |
//! | job | the state of one prewarm, from its request to its answer |
//! | lease | a pin that ends by itself |
//! | manifest | the files of one revision (path, size, BLAKE3), the same whichever origin they came from |
//! | model | one revision of what a reference selects, on this node |
//! | origin | outbound adapter: where bytes come from first |
//! | outboard | the chaining values of a blob's groups, kept beside it |
//! | part | the unit of fetch and write: a whole number of groups |
//! | pack | the one blob that holds the bytes of a bundle's files |
//! | partial | a blob under construction; never has a blob's name |
//! | peer | another preheat node |
//! | pin | why a model may not be evicted |
//! | reference | what a person types: scheme, place, revision, subfolder, selection |
//! | revision | an immutable version at an origin: a commit, a listing's digest or a manifest's |
//! | scope | tenant and origin identity: content of one scope is never found from another |
//! | selection | which files of a revision an engine needs |
//! | tier | where a model is: `disk` (on the node, verified, tree published) or `memory` (in the page cache as well) |
//! | tree | a directory of hard links to blobs that a process can open; its path follows from identity and revision |
//! | validator | what an origin says distinguishes one version of an object from the next (a strong `ETag`, a generation) |
//!
//! # Invariants
//!
//! 1. Only sealed blobs have names; [`digest::Verified`] is made by verifying and in no other way.
//! 2. Nothing is acknowledged as durable before data, outboard, name and directory are synced, in that order.
//! 3. The record that a part has arrived is written after the part, and durable after it.
//! 4. A buffer belongs to the kernel until its completion; dropping a future takes nothing away from it.
//! 5. Whatever can run out (memory, disk, connections, requests held) is a budget with an owner; space is reserved before the
//!    first byte is asked for.
//! 6. One version of an object per flight: it is pinned at planning, and a change underneath is an error, never a mix.
//! 7. What comes from outside has a limit on its length, its count and its time.
//! 8. Three kinds of code: deciders are pure and own their state, drivers await and act, hands block. A decider sees no clock,
//!    no socket and no disk.
// `sys` alone is declared with `#[allow(unsafe_code, reason = "...")]`.
#![deny(unsafe_code)]

pub mod base;
pub mod digest;
#[allow(unsafe_code, reason = "system calls; every block is argued")]
pub mod sys;
pub mod telemetry;

pub mod model;

pub mod origin;
pub mod store;

pub mod transfer;

pub mod access;

pub mod engines;

pub mod placement;

pub mod prewarm;

pub mod doors;

pub mod config;

pub mod daemon;

pub mod cli;
