//! The home node's accounts: what each grant may cost, what was leased and done under it, and the
//! one settlement that counts it (specs/settlement.md).
//!
//! A grant is settled by a compare-and-set: from *open* to *settled*, once, never above its cap
//! (S3). Deliberately without any say in which node runs what; that is [`crate::broker`].

use std::collections::{BTreeMap, BTreeSet};

use allmend_protocol::envelope::Verified;
use allmend_protocol::grant::Grant;
use allmend_protocol::ids::{InstitutionId, MessageId, NodeId};
use allmend_protocol::lease::Lease;
use allmend_protocol::receipt::{JobOutcome, Receipt, Settlement, Share};
use allmend_protocol::roster::Roster;
use allmend_protocol::time::{DurationMs, Timestamp};
use allmend_protocol::units::Credits;

use crate::core::Broken;
use crate::ctx::Ctx;
use crate::io::{Effect, Record};

/// Tokens of home's count are journaled every so many, so that a restart forgets few.
const STREAMED_EVERY_TOKENS: u32 = 4;

/// A receipt travels apart from its tokens: those still on their way count if they arrive within
/// this time.
const STREAM_GRACE: DurationMs = DurationMs::from_secs(3);

/// All accounts of one home node.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    accounts: BTreeMap<MessageId, Account>,
    open: BTreeSet<MessageId>,
    /// Caps of all open grants, in micro-credits.
    escrow: u128,
}

/// One grant's account.
#[derive(Clone, Debug)]
pub struct Account {
    grant: Verified<Grant>,
    /// The prompt tokens that the job spec lets anyone charge for.
    prompt_tokens_max: u64,
    lines: BTreeMap<u16, Line>,
    over: Option<Closing>,
    settlement: Option<Verified<Settlement>>,
}

/// One attempt's lease and what came of it.
#[derive(Clone, Debug)]
pub struct Line {
    /// The lease.
    pub lease: Verified<Lease>,
    /// Tokens of this attempt that arrived here.
    pub tokens: u32,
    tokens_recorded: u32,
    /// The receipt.
    pub receipt: Option<Verified<Receipt>>,
    receipt_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Closing {
    outcome: JobOutcome,
    /// An assignment out there may still be answered by a lease until then.
    lease_possible_until: Timestamp,
}

/// What became of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiptNews {
    /// Taken note of for the first time.
    New,
    /// Known, too late, or not of a lease known here.
    Nothing,
}

impl Ledger {
    /// The account of a grant.
    pub fn account(&self, grant: MessageId) -> Option<&Account> {
        self.accounts.get(&grant)
    }

    /// Caps of all grants that are not settled, in micro-credits.
    pub fn escrow_micro(&self) -> u128 {
        self.escrow
    }

    /// Grants that are not settled.
    pub fn open_grants(&self) -> impl Iterator<Item = &MessageId> {
        self.open.iter()
    }

    /// Sets the cap of `grant` aside.
    pub(crate) fn open(&mut self, grant: Verified<Grant>, prompt_tokens_max: u32) {
        let id = grant.id();
        if self.accounts.contains_key(&id) {
            return;
        }
        self.escrow += u128::from(grant.cap.as_micro());
        self.open.insert(id);
        let account = Account {
            grant,
            prompt_tokens_max: u64::from(prompt_tokens_max),
            lines: BTreeMap::new(),
            over: None,
            settlement: None,
        };
        self.accounts.insert(id, account);
    }

    /// Enters a lease, also one that came too late to be followed: its node is owed a hearing.
    pub(crate) fn enter_lease(&mut self, lease: Verified<Lease>) {
        if let Some(account) = self.accounts.get_mut(&lease.grant)
            && account.settlement.is_none()
        {
            account.lines.entry(lease.attempt).or_insert(Line {
                lease,
                tokens: 0,
                tokens_recorded: 0,
                receipt: None,
                receipt_at: None,
            });
        }
    }

    /// Counts tokens of an attempt that have arrived.
    pub(crate) fn streamed(&mut self, ctx: &mut Ctx<'_>, grant: MessageId, at: u16, tokens: u32) {
        let Some(account) = self.accounts.get_mut(&grant) else { return };
        let job = account.grant.job;
        if let Some(line) = account.lines.get_mut(&at) {
            line.tokens = line.tokens.max(tokens);
            if line.tokens - line.tokens_recorded >= STREAMED_EVERY_TOKENS {
                line.record(ctx, job, at);
            }
        }
    }

    /// Takes note of a receipt; a node that repeats one is told what was settled.
    pub(crate) fn receipt(
        &mut self,
        ctx: &mut Ctx<'_>,
        receipt: &Verified<Receipt>,
    ) -> ReceiptNews {
        let Some(account) = self.accounts.get_mut(&receipt.grant) else {
            return ReceiptNews::Nothing;
        };
        if let Some(settlement) = &account.settlement {
            ctx.send(receipt.signer, settlement.clone(), vec![]);
            if !ctx.settings.faults.settle_without_compare_and_set {
                return ReceiptNews::Nothing;
            }
        }
        let job = account.grant.job;
        let Some(line) = account.lines.get_mut(&receipt.attempt) else {
            return ReceiptNews::Nothing;
        };
        let fits = receipt.job == job
            && receipt.lease == line.lease.id()
            && receipt.signer == line.lease.signer;
        if !fits || line.receipt.is_some() {
            return ReceiptNews::Nothing;
        }
        if line.tokens > line.tokens_recorded {
            line.record(ctx, job, receipt.attempt);
        }
        ctx.heard(&receipt.clone().into(), &[], true);
        line.receipt = Some(receipt.clone());
        line.receipt_at = Some(ctx.now);
        ReceiptNews::New
    }

    /// The job of `grant` is over; only the counting is left.
    pub(crate) fn close(
        &mut self,
        grant: MessageId,
        outcome: JobOutcome,
        lease_possible_until: Timestamp,
    ) {
        if let Some(account) = self.accounts.get_mut(&grant)
            && account.over.is_none()
        {
            account.over = Some(Closing { outcome, lease_possible_until });
        }
    }

    /// What the receipts so far ask for.
    pub(crate) fn spent(&self, grant: MessageId) -> Credits {
        let Some(account) = self.accounts.get(&grant) else { return Credits::ZERO };
        let costs = account.lines.values().filter_map(|line| line.receipt.as_ref());
        costs.fold(Credits::ZERO, |sum, receipt| {
            Credits::from_micro(sum.as_micro().saturating_add(receipt.cost.as_micro()))
        })
    }

    /// Settles every grant that is due.
    pub(crate) fn tick(&mut self, ctx: &mut Ctx<'_>) {
        let due: Vec<MessageId> = self
            .open
            .iter()
            .copied()
            .filter(|grant| self.accounts.get(grant).is_some_and(|account| account.is_due(ctx)))
            .collect();
        for grant in due {
            self.settle(ctx, grant);
        }
    }

    /// Forgets an account that is settled.
    pub(crate) fn forget(&mut self, grant: MessageId) {
        if !self.open.contains(&grant) {
            self.accounts.remove(&grant);
        }
    }

    /// The compare-and-set.
    fn settle(&mut self, ctx: &mut Ctx<'_>, grant: MessageId) {
        let Some(account) = self.accounts.get_mut(&grant) else { return };
        let careless = ctx.settings.faults.settle_without_compare_and_set;
        if account.settlement.is_some() && !careless {
            return;
        }
        let Some(closing) = account.over else { return };
        let (shares, total) = account.shares(ctx.roster, ctx.now);
        let settlement = ctx.sign(Settlement {
            federation: ctx.me.federation,
            signer: ctx.me.node,
            charter: ctx.charter(),
            job: account.grant.job,
            grant,
            payer: ctx.me.institution,
            outcome: closing.outcome,
            shares,
            total,
            refunded: account.grant.cap.less(total),
            issued: ctx.now,
        });
        ctx.leaf(settlement.clone(), true);
        for node in settlement.shares.iter().map(|share| share.node).collect::<BTreeSet<NodeId>>() {
            ctx.send(node, settlement.clone(), vec![]);
        }
        ctx.out.push(Effect::JobChanged { job: account.grant.job });
        self.enter_settlement(settlement);
        if careless {
            self.open.insert(grant);
        }
    }

    fn enter_settlement(&mut self, settlement: Verified<Settlement>) {
        let Some(account) = self.accounts.get_mut(&settlement.grant) else { return };
        if self.open.remove(&settlement.grant) {
            self.escrow = self.escrow.saturating_sub(u128::from(account.grant.cap.as_micro()));
        }
        account.settlement = Some(settlement);
    }

    // From the journal.

    pub(crate) fn replay_receipt(&mut self, receipt: Verified<Receipt>) {
        if let Some(account) = self.accounts.get_mut(&receipt.grant)
            && let Some(line) = account.lines.get_mut(&receipt.attempt)
        {
            line.receipt = Some(receipt);
        }
    }

    pub(crate) fn replay_streamed(&mut self, grant: MessageId, attempt: u16, tokens: u32) {
        if let Some(account) = self.accounts.get_mut(&grant)
            && let Some(line) = account.lines.get_mut(&attempt)
        {
            line.tokens = line.tokens.max(tokens);
            line.tokens_recorded = line.tokens;
        }
    }

    pub(crate) fn replay_settlement(&mut self, settlement: Verified<Settlement>) {
        self.enter_settlement(settlement);
    }

    /// The first rule that the accounts break.
    pub(crate) fn broken_invariant(&self) -> Option<Broken> {
        let mut escrow = 0u128;
        for grant in &self.open {
            let Some(account) = self.accounts.get(grant) else {
                return Some(Broken::new("escrow", format!("open grant {grant} has no account")));
            };
            if account.settlement.is_some() {
                return Some(Broken::new("S3", format!("grant {grant} is open and settled")));
            }
            escrow += u128::from(account.grant.cap.as_micro());
        }
        (escrow != self.escrow)
            .then(|| Broken::new("escrow", format!("{} set aside, {escrow} open", self.escrow)))
    }

    /// What the journal keeps, for comparing a replay with the live state.
    pub(crate) fn durable(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let accounts: Vec<_> = self.accounts.values().map(Account::durable).collect();
        (accounts, self.open.clone(), self.escrow)
    }
}

impl Account {
    /// The grant.
    pub fn grant(&self) -> &Verified<Grant> {
        &self.grant
    }

    /// The settlement, once there is one.
    pub fn settlement(&self) -> Option<&Verified<Settlement>> {
        self.settlement.as_ref()
    }

    /// An attempt's lease and receipt.
    pub fn line(&self, attempt: u16) -> Option<&Line> {
        self.lines.get(&attempt)
    }

    /// What an attempt was paid.
    pub fn paid(&self, attempt: u16) -> Option<Credits> {
        let lease = self.lines.get(&attempt)?.lease.id();
        let share = self.settlement.as_ref()?.shares.iter().find(|share| share.lease == lease);
        Some(share.map_or(Credits::ZERO, |share| share.cost))
    }

    fn durable(&self) -> impl PartialEq + std::fmt::Debug + use<> {
        let line = |(attempt, line): (&u16, &Line)| {
            let receipt = line.receipt.as_ref().map(Verified::id);
            (*attempt, line.lease.id(), line.tokens_recorded, receipt)
        };
        let lines: Vec<_> = self.lines.iter().map(line).collect();
        let settlement = self.settlement.as_ref().map(Verified::id);
        (self.grant.id(), self.prompt_tokens_max, lines, self.over, settlement)
    }

    fn is_due(&self, ctx: &Ctx<'_>) -> bool {
        let Some(closing) = &self.over else { return false };
        let careless = ctx.settings.faults.settle_without_compare_and_set;
        if self.settlement.is_some() && careless {
            // The fault: as if a repeated receipt had asked for another settlement.
            return self.settlement.as_ref().is_some_and(|s| s.issued < ctx.now);
        }
        if ctx.now >= self.grant.settle_by {
            return true;
        }
        ctx.now >= closing.lease_possible_until
            && self.lines.values().all(|line| {
                line.receipt.as_ref().is_some_and(|receipt| {
                    let arrived = u64::from(line.tokens) >= receipt.usage.completion_tokens;
                    let heard = line.receipt_at.unwrap_or(ctx.started);
                    arrived || ctx.now >= heard.plus(STREAM_GRACE)
                })
            })
    }

    /// Who gets what: in order of attempts until the cap is used up, each at most what the receipt
    /// asks and what home can vouch for.
    fn shares(&self, roster: &Roster, now: Timestamp) -> (Vec<Share>, Credits) {
        let mut left = self.grant.cap;
        let mut shares = Vec::new();
        for line in self.lines.values() {
            let Some(receipt) = &line.receipt else { continue };
            let lease = &line.lease;
            let Some(institution) = institution_of(roster, lease, now) else { continue };
            let prompt = receipt.usage.prompt_tokens.min(self.prompt_tokens_max);
            let written = receipt.usage.completion_tokens.min(u64::from(line.tokens));
            let vouched = lease.rates.cost(prompt, written).unwrap_or(left);
            let cost = receipt.cost.min(vouched).min(left);
            left = left.less(cost);
            shares.push(Share {
                lease: lease.id(),
                receipt: receipt.id(),
                node: lease.signer,
                institution,
                cost,
            });
        }
        shares.sort_by_key(|share| share.lease);
        (shares, self.grant.cap.less(left))
    }
}

impl Line {
    fn record(&mut self, ctx: &mut Ctx<'_>, job: MessageId, attempt: u16) {
        self.tokens_recorded = self.tokens;
        ctx.record(Record::Streamed { job, attempt, tokens: self.tokens }, false);
    }
}

/// Whom a lease's node belongs to: as certified when the lease was taken, else now, else ever.
fn institution_of(roster: &Roster, lease: &Lease, now: Timestamp) -> Option<InstitutionId> {
    let node = lease.signer;
    let certified = roster.node_at(lease.issued, node).or_else(|_| roster.node_at(now, node)).ok();
    certified.or_else(|| roster.nodes().find(|cert| cert.node == node)).map(|cert| cert.signer)
}
