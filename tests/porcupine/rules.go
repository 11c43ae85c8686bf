package main

// state is what there is at one moment: of a patient the phase and the record, of an address the patient that holds
// it. The zero value is the beginning.
type state struct {
	phase  phase
	record record
	// holder is the tag of the registration that made the patient who holds an address.
	holder uint64
	// over says that the run has ended: nothing takes effect any more.
	over bool
}

type phase uint8

const (
	absent phase = iota
	living
	gone
)

func (s state) hash() uint64 {
	// The constants are those of FNV-1a.
	h := uint64(14695981039346656037)
	for _, part := range []uint64{
		uint64(s.phase), uint64(s.record.Version), s.record.Name, s.record.Address, uint64(s.record.Email.number), s.holder,
	} {
		h = (h ^ part) * 1099511628211
	}
	if s.over {
		return ^h
	}
	return h
}

// rules say what one thing promises to its clients.
type rules interface {
	// explain says whether the answer to an operation can be given in a state, and which state follows. The outcome of
	// the operation is known.
	explain(before state, o *operation) (state, bool)
	// effect is what a change makes of a state where it is carried out.
	effect(before state, o *operation) state
	// possible says whether a change of unknown outcome may have led to this state, by what the whole history shows. It
	// only spares the search states that would contradict an answer later.
	possible(after state, o *operation) bool
}

// life holds the promises to the clients of one patient: a registration makes version 1, each change that changes
// something makes the next version, a deletion ends the record for good, and everybody is told what there is.
type life struct {
	// records holds each version that is known.
	records map[int64]record
	// latest is the newest version of the living record that is known.
	latest int64
	// first is the oldest version that is known to have a tag.
	first map[uint64]int64
}

func newLife(operations []*operation, table []version) *life {
	l := &life{records: map[int64]record{}, first: map[uint64]int64{}}
	for _, v := range table {
		if v.Record != nil {
			l.note(*v.Record)
		}
	}
	for _, o := range operations {
		switch {
		case o.outcome == shown:
			l.note(o.record)
		case o.outcome == at && !o.ended && o.version > l.latest:
			l.latest = o.version
		}
	}
	return l
}

// note takes in a version that is known.
func (l *life) note(r record) {
	l.records[r.Version] = r
	if r.Version > l.latest {
		l.latest = r.Version
	}
	for _, tag := range []uint64{r.Name, r.Address} {
		if known, ok := l.first[tag]; !ok || r.Version < known {
			l.first[tag] = r.Version
		}
	}
}

func (l *life) explain(before state, o *operation) (state, bool) {
	switch {
	case o.kind == look && o.looksAt == history:
		return before, l.remembers(before, o)
	case o.kind == look:
		return before, l.sees(before, o)
	case o.kind == register && before.phase != absent:
		// An id is given once.
		return before, false
	case o.kind != register && before.phase != living:
		return before, o.outcome == missing
	case o.args.Expected != nil && *o.args.Expected != before.record.Version:
		return before, o.outcome == stale
	case o.outcome == taken:
		// Nobody else can have an address of this patient alone, or one that this patient has.
		asks := o.asksFor
		return before, asks != nil && asks.kind == contested && (before.phase == absent || *asks != before.record.Email)
	}
	after := l.effect(before, o)
	switch o.kind {
	case remove:
		return after, o.outcome == ended
	case restrict:
		return after, o.outcome == done
	default:
		return after, o.outcome == shown && o.record == after.record
	}
}

// sees says whether a look shows the record as it is: alone, on a page of all, or among those found by an address.
// Pages and searches do not show restricted records.
func (l *life) sees(s state, o *operation) bool {
	found := s.phase == living
	if o.looksAt != get {
		found = found && !s.record.Restricted
	}
	if o.looksAt == searched {
		found = found && s.record.Email == *o.asksFor
	}
	if found {
		return o.outcome == shown && o.record == s.record
	}
	return o.outcome == missing
}

// remembers says whether a history tells the newest version. It outlives the record.
func (l *life) remembers(s state, o *operation) bool {
	if s.phase == absent {
		return o.outcome == missing
	}
	return o.outcome == at && o.version == s.record.Version && o.ended == (s.phase == gone)
}

func (l *life) effect(before state, o *operation) state {
	after := before
	r := &after.record
	switch {
	case o.kind == register && before.phase == absent:
		after.phase = living
		*r = record{Name: o.args.Tag, Address: o.args.Tag, Email: *o.asksFor}
	case o.kind == register || before.phase != living,
		o.args.Expected != nil && *o.args.Expected != before.record.Version,
		o.kind == restrict && o.args.On == before.record.Restricted:
		return before
	case o.kind == remove:
		// What an ended record was like nobody is told.
		return state{phase: gone, record: record{Version: before.record.Version + 1}}
	case o.kind == restrict:
		r.Restricted = o.args.On
	case o.kind == put:
		r.Name, r.Address, r.Email = o.args.Tag, o.args.Tag, *o.asksFor
	case o.args.Part.name == partName:
		r.Name = o.args.Tag
	default:
		r.Address = o.args.Tag
		if o.asksFor != nil {
			r.Email = *o.asksFor
		}
	}
	r.Version++
	return after
}

func (l *life) possible(after state, o *operation) bool {
	version := after.record.Version
	if after.phase == gone {
		return version > l.latest
	}
	if seen, known := l.records[version]; known && seen != after.record {
		return false
	}
	first, seen := l.first[o.args.Tag]
	return o.args.Tag == 0 || !seen || version <= first
}

// address holds the promise about one e-mail address: one living patient has it at a time.
type address struct {
	email email
}

// concerns says whether an operation tells something of the address.
func (a address) concerns(o *operation) bool {
	switch o.outcome {
	case shown, ended, unknown:
		return true
	case taken:
		return o.asksFor != nil && *o.asksFor == a.email
	case missing:
		// A page and a search also miss what is restricted, and a history tells nothing of addresses.
		return o.kind != look || o.looksAt == get
	case at:
		return o.ended
	}
	return false
}

func (a address) explain(before state, o *operation) (state, bool) {
	holds := before.holder == o.MadeBy
	switch o.outcome {
	case taken:
		return before, before.holder != 0 && !holds
	case missing, at:
		return before, !holds
	case ended:
		return a.effect(before, o), true
	}
	after := before
	if o.isChange() {
		after = a.effect(before, o)
	}
	// The record that is shown is the one after the change.
	return after, (after.holder == o.MadeBy) == (o.record.Email == a.email)
}

func (a address) effect(before state, o *operation) state {
	holds := before.holder == o.MadeBy
	takes := o.kind != remove && o.asksFor != nil && *o.asksFor == a.email
	gives := o.kind == remove || o.asksFor != nil && *o.asksFor != a.email
	switch {
	case takes && before.holder == 0:
		return state{holder: o.MadeBy}
	case gives && holds:
		return state{}
	default:
		return before
	}
}

func (a address) possible(state, *operation) bool { return true }
