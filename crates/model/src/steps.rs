//! Steps of decoding on a GPU: one token for every unfinished answer, by launches that are the same from step to step, so
//! that they are recorded once and repeated (`cuda::Repeats`).
//! All that changes (tokens, positions, places in the store, who sees what, what draws depend on) lies in one table of
//! words at a fixed address, which goes down in one copy; what was drawn comes up in one. Rows are filled up to few
//! numbers of rows, each of which has a recording of its own; rows that stand for nobody see a row of the store that
//! belongs to nobody.
//! Knows lists and launches; the model's forward pass knows nothing of it. On the CPU, and where nothing is to be repeated,
//! a step is a pass like any other.
//! Cost: the cosines and sines of all positions once per wave; two passes and a recording per number of rows.

use std::rc::Rc;
use std::sync::Arc;

use foveate_kernels::cuda::ops::attention::RowQuery;
use foveate_kernels::cuda::ops::head::{Draw, head_logits_listed, pick_listed, read_chosen};
use foveate_kernels::cuda::ops::rows::gather_listed;
use foveate_kernels::cuda::{Device, DeviceBuffer, GpuError, Number, Recording, Repeats, Scratch, View};
use foveate_kernels::rng::{Purpose, Stream};
use foveate_kernels::segment::ancestors;

use crate::arena::Arena;
use crate::cache::KeyValueStore;
use crate::error::ModelError;
use crate::on_device::number;
use crate::policy::{Packed, Policy};
use crate::policy_device::{LOGIT_ROWS, are_picked_there, draw_of};
use crate::positions::Positions;
use crate::profile::timer;
use crate::sampling::{Picked, SamplingSpec};
use crate::tape::{Attend, Tape};

/// What one step is asked: a row for every unfinished answer.
pub(crate) struct Asked<'a> {
    /// Newest token of each.
    pub ids: &'a [u32],
    /// Its rotary position.
    pub positions: &'a [u32],
    /// The store, and what of it each row sees.
    pub attend: &'a Attend,
    /// How each is drawn.
    pub specs: &'a [&'a SamplingSpec],
    /// What each draw depends on.
    pub streams: &'a [(Stream, u32)],
    /// All positions of this step and of those that follow are below.
    pub positions_end: usize,
}

/// Numbers of rows that steps are made for: rows beyond the asked ones cost little as long as there are few, a recording
/// for every number would cost much.
fn filled_up(num_rows: usize) -> usize {
    if num_rows <= 64 { num_rows.next_power_of_two() } else { num_rows.next_multiple_of(64) }
}

/// Words of a row in each column of the table: token, position, place in the store, its own number, what it asks, the
/// range of its prompt, its draw.
const COLUMNS: [usize; 7] = [1, 1, 1, 1, RowQuery::WORDS, 2, Draw::WORDS];

/// The lists that a step's kernels read.
pub(crate) struct Lists {
    table: DeviceBuffer,
    num_rows: usize,
    /// Cosines and sines of the rows, filled by the step itself.
    pub angles: Rc<[DeviceBuffer; 2]>,
}

impl Lists {
    fn new(device: &Device, num_rows: usize, half: usize) -> Lists {
        let table = device.take(Number::U32, num_rows * COLUMNS.iter().sum::<usize>());
        let angles = [(); 2].map(|()| device.take(Number::F32, num_rows * half));
        Lists { table, num_rows, angles: Rc::new(angles) }
    }

    fn column(&self, index: usize) -> View<'_> {
        let first: usize = COLUMNS[..index].iter().sum();
        self.table.part(self.num_rows * first..self.num_rows * (first + COLUMNS[index]))
    }

    /// Token of each row.
    pub fn ids(&self) -> View<'_> {
        self.column(0)
    }

    /// Rotary position of each row.
    fn positions(&self) -> View<'_> {
        self.column(1)
    }

    /// Row of the store that each row is written to.
    pub fn places(&self) -> View<'_> {
        self.column(2)
    }

    /// The numbers of the rows.
    pub fn rows(&self) -> View<'_> {
        self.column(3)
    }

    /// What each row sees.
    pub fn queries(&self) -> View<'_> {
        self.column(4)
    }

    /// The ranges that queries name.
    pub fn ranges(&self) -> View<'_> {
        self.column(5)
    }

    fn draws(&self) -> View<'_> {
        self.column(6)
    }
}

/// The table's words for so many rows; none if the step is of another form: a row sees a prompt and its own answer.
fn words(asked: &Asked, num_rows: usize, vocabulary: usize) -> Option<Vec<u32>> {
    let Attend::Stored { store, segments, queries, rows: places } = asked.attend else { return None };
    let spare = store.spare_row();
    let nobody = Stream::new(0, Purpose::Sampling, 0, 0, 0);
    let mut columns: [Vec<u32>; 7] = COLUMNS.map(|words| Vec::with_capacity(words * num_rows));
    for index in 0..num_rows {
        let row = index as u32;
        let own_logits = row % LOGIT_ROWS as u32;
        let mut query = RowQuery { row, first_range: row, num_ranges: 0, own_start: spare, own_visible: 1 };
        let (mut id, mut position, mut place, mut range) = (0, 0, spare, [0; 2]);
        let mut draw =
            Draw { row: own_logits, greedy: true, inv_temperature: 1.0, stream: nobody, position: 0 }.words();
        if let Some(run) = queries.get(index) {
            if run.num_rows != 1 || run.first_row != row {
                return None;
            }
            let parents = ancestors(segments, run.segment);
            let [parent] = parents[..] else { return None };
            let (parent, own) = (segments[parent as usize], segments[run.segment as usize]);
            assert!(parent.start + parent.len <= spare, "a step outside the store");
            range = [parent.start, parent.len];
            query.num_ranges = u32::from(parent.len > 0);
            (query.own_start, query.own_visible) = (own.start, run.first_position + 1);
            (id, position, place) = (asked.ids[index], asked.positions[index], places[index]);
            draw = draw_of(asked.specs[index], own_logits, asked.streams[index]).words();
        }
        // Kernels do not look: what they are told must exist.
        assert!((id as usize) < vocabulary && (position as usize) < asked.positions_end, "a step outside its tables");
        assert!(place <= spare && query.own_start + query.own_visible <= spare + 1, "a step outside the store");
        columns[0].push(id);
        columns[1].push(position);
        columns[2].push(place);
        columns[3].push(row);
        columns[4].extend(query.words());
        columns[5].extend(range);
        columns[6].extend(draw);
    }
    Some(columns.concat())
}

/// The steps of one store so far.
#[derive(Default)]
pub(crate) struct Steps {
    kept: Option<Kept>,
}

struct Kept {
    /// Recordings name its memory.
    store: Rc<KeyValueStore>,
    /// Where the head's weights lie: with them all others move.
    head: u64,
    /// Cosines and sines of all positions.
    angles: [DeviceBuffer; 2],
    num_positions: usize,
    banned: (Arc<[u32]>, DeviceBuffer),
    /// One for all: nothing in it outlives a step.
    scratch: Scratch,
    sizes: Vec<Step>,
}

/// A step of one size.
struct Step {
    lists: Rc<Lists>,
    /// Whether tokens are chosen on the device; else the last hidden states are left for the host to ask.
    picks: bool,
    /// Columns of ids, log-probabilities and entropies, or the hidden states.
    result: DeviceBuffer,
    has_run: bool,
    recording: Option<Recording>,
}

impl Kept {
    /// What is needed for `asked`, taken over from before where it still holds.
    fn new(
        policy: &Policy,
        device: &Device,
        store: &Rc<KeyValueStore>,
        num_positions: usize,
        banned: Option<&Arc<[u32]>>,
        before: Option<Kept>,
    ) -> Kept {
        // Asked every time: what the host has changed of the weights goes down with it.
        let head = policy.weights().matrix_on_device(policy.decoder().head).address();
        if let Some(kept) = before {
            let same = Rc::ptr_eq(&kept.store, store) && kept.head == head;
            if same && num_positions <= kept.num_positions && banned.is_none_or(|banned| kept.banned.0 == *banned) {
                return kept;
            }
        }
        let config = &policy.decoder().config;
        let all = Positions::text((0..num_positions as u32).collect()).table(&config.rope, config.head_dim);
        let banned = banned.cloned().unwrap_or_else(|| Arc::from([]));
        Kept {
            store: store.clone(),
            head,
            angles: [device.upload(&all.cos), device.upload(&all.sin)],
            num_positions,
            banned: (banned.clone(), device.upload(&banned)),
            scratch: device.scratch(),
            sizes: Vec::new(),
        }
    }

    /// The step of this size and kind.
    fn size(&mut self, policy: &Policy, device: &Device, num_rows: usize, picks: bool) -> usize {
        let fits = |step: &Step| step.lists.num_rows == num_rows && step.picks == picks;
        if let Some(index) = self.sizes.iter().position(fits) {
            return index;
        }
        let config = &policy.decoder().config;
        let result = match picks {
            true => device.take(Number::U32, 3 * num_rows),
            false => device.take(number(policy.operand()), num_rows * config.width),
        };
        let lists = Rc::new(Lists::new(device, num_rows, config.rope.inverse_frequencies.len()));
        self.sizes.push(Step { lists, picks, result, has_run: false, recording: None });
        self.sizes.len() - 1
    }
}

impl Policy {
    /// One more token for everybody.
    pub(crate) fn pick_next(
        &self,
        steps: &mut Steps,
        asked: &Asked,
        arena: &mut Arena,
    ) -> Result<Vec<Picked>, ModelError> {
        let num_rows = filled_up(asked.ids.len());
        // Draws of dropout are arguments of launches, and others in every pass.
        let repeats = |device: &&Device| device.repeats() != Repeats::Afresh && !self.weights().has_dropout();
        if let Some(device) = self.device().filter(repeats)
            && !asked.ids.is_empty()
            && let Attend::Stored { store, .. } = asked.attend
            && let Some(words) = words(asked, num_rows, self.decoder().config.vocabulary)
        {
            return self.step(device, store, steps, asked, &words, num_rows, arena);
        }
        let input = Packed { ids: asked.ids, places: asked.positions, tiles: &[], placements: &[] };
        let rows: Vec<u32> = (0..asked.ids.len() as u32).collect();
        let positions = Positions::text(asked.positions.to_vec());
        self.pick_from(&input, &positions, asked.attend, &rows, asked.specs, arena, &rows, asked.streams)
    }

    fn step(
        &self,
        device: &Device,
        store: &Rc<KeyValueStore>,
        steps: &mut Steps,
        asked: &Asked,
        words: &[u32],
        num_rows: usize,
        arena: &mut Arena,
    ) -> Result<Vec<Picked>, ModelError> {
        let _timer = timer("step of decoding");
        let picks = are_picked_there(asked.specs);
        let banned = picks.then(|| &asked.specs[0].banned);
        let mut kept = Kept::new(self, device, store, asked.positions_end, banned, steps.kept.take());
        let index = kept.size(self, device, num_rows, picks);
        kept.sizes[index].lists.table.all().write(words);
        if kept.sizes[index].recording.is_none() && kept.sizes[index].has_run && device.repeats() == Repeats::Recorded {
            // The first step of a size runs as it is: kernels are loaded and algorithms chosen then.
            match device.record(&kept.scratch, || self.launch_step(&kept, &kept.sizes[index], arena)) {
                Ok((recording, ())) => kept.sizes[index].recording = Some(recording),
                Err(error) => tell_once(device, &error),
            }
        }
        match &kept.sizes[index].recording {
            Some(recording) => device.replay(recording),
            None => self.launch_step(&kept, &kept.sizes[index], arena),
        }
        kept.sizes[index].has_run = true;
        let result = &kept.sizes[index].result;
        let picked = if picks {
            let chosen = read_chosen(result.all()).into_iter().take(asked.ids.len());
            let picked = chosen.map(|(id, logprob, entropy)| Picked { id, logprob, entropy, drawn_logprob: logprob });
            self.check_device().map(|()| picked.collect())
        } else {
            let rows: Vec<u32> = (0..asked.ids.len() as u32).collect();
            self.pick_on_device(result, rows.len(), asked.specs, &rows, asked.streams)
        };
        steps.kept = Some(kept);
        picked
    }

    /// Launches, or records, what is the same in all steps of a size.
    fn launch_step(&self, kept: &Kept, step: &Step, arena: &mut Arena) {
        let lists = &step.lists;
        let num_rows = lists.num_rows;
        let config = &self.decoder().config;
        let half = config.rope.inverse_frequencies.len();
        for (all, own) in kept.angles.iter().zip(lists.angles.iter()) {
            gather_listed(all.all(), lists.positions(), half, own.all());
        }
        // The tape reads the lists; these stand for as many rows.
        let stand_in = vec![0; num_rows];
        let input = Packed { ids: &stand_in, places: &stand_in, tiles: &[], placements: &[] };
        let attend = Attend::Stored {
            store: kept.store.clone(),
            segments: [].into(),
            queries: [].into(),
            rows: stand_in.clone().into(),
        };
        let mut tape = Tape::new(self.weights(), std::mem::take(arena), self.operand(), false, false);
        tape.read_lists(lists.clone());
        let x = self.forward(&mut tape, &input, &Positions::text(stand_in.clone()), &attend);
        let x = self.last_norm(&mut tape, x, stand_in.clone().into());
        let states = tape.value(x).on_device();
        if step.picks {
            let (vocabulary, width) = (config.vocabulary, config.width);
            let weight = self.weights().matrix_on_device(self.decoder().head);
            let logits = states.device().take(Number::F32, num_rows.min(LOGIT_ROWS) * vocabulary);
            for first in (0..num_rows).step_by(LOGIT_ROWS) {
                let last = (first + LOGIT_ROWS).min(num_rows);
                let block = logits.part(0..(last - first) * vocabulary);
                head_logits_listed(states.part(first * width..last * width), weight, width, kept.banned.1.all(), block);
                let draws = lists.draws().part(first * Draw::WORDS..last * Draw::WORDS);
                pick_listed(block, vocabulary, draws, step.result.all(), first);
            }
        } else {
            step.result.all().copy_from(states.all());
        }
        *arena = tape.into_arena();
    }
}

/// Steps are launched kernel by kernel from now on.
fn tell_once(device: &Device, error: &GpuError) {
    device.set_repeats(Repeats::Fixed);
    tracing::warn!("{} records no launches, decoding goes on without: {error}", device.name());
}
