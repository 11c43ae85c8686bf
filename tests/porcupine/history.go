package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sort"
)

// Kinds of operations, of looks, of what a patch sets, and of outcomes, as the histories name them.
const (
	register    = "register"
	look        = "look"
	put         = "put"
	patch       = "patch"
	restrict    = "restrict"
	remove      = "delete"
	openAccount = "open_account"
	endOfRun    = "end of the run"

	get      = "get"
	listed   = "listed"
	searched = "searched"
	history  = "history"

	partName    = "name"
	partAddress = "address"
	partEmail   = "email"

	shown   = "record"
	at      = "at"
	done    = "done"
	ended   = "ended"
	missing = "missing"
	taken   = "taken"
	stale   = "stale"
	account = "account"
	notDone = "not_done"
	unknown = "unknown"
)

// email is an e-mail address: its kind (own, second, contested), and the number of a contested one.
type email struct {
	kind   string
	number uint32
}

const contested = "contested"

// record is what an answer shows. The name and the postal address are given by the tags of the changes that set them.
type record struct {
	Version    int64  `json:"version"`
	Name       uint64 `json:"name"`
	Address    uint64 `json:"address"`
	Email      email  `json:"email"`
	Restricted bool   `json:"restricted"`
}

// operation is one line of a history.
type operation struct {
	Client  int     `json:"client"`
	Patient *string `json:"patient"`
	// MadeBy is the tag of the registration that made the patient.
	MadeBy uint64 `json:"made_by"`
	// Invoked, Returned and Due are nanoseconds from the beginning of the run, on one clock for all clients. Due is the
	// latest moment for the answer.
	Invoked  int64   `json:"invoked_ns"`
	Returned int64   `json:"returned_ns"`
	Due      int64   `json:"due_ns"`
	Call     variant `json:"call"`
	Outcome  variant `json:"outcome"`

	kind string
	args arguments
	// asksFor is the e-mail address that the change asks for.
	asksFor *email
	// looksAt is the kind of a look; a search is for the address asksFor.
	looksAt string

	outcome string
	record  record
	// version and ended are what a history tells.
	version int64
	ended   bool
}

// arguments are those of all kinds of operations.
type arguments struct {
	// Tag tells what this change writes from what any other writes.
	Tag   uint64  `json:"tag"`
	Email *email  `json:"email"`
	Part  variant `json:"part"`
	// Expected is the version that the record must have.
	Expected *int64 `json:"expected"`
	On       bool   `json:"on"`
}

// variant is an enum of serde: its name, or an object of its name and what it carries.
type variant struct {
	name  string
	holds json.RawMessage
}

func (v *variant) UnmarshalJSON(text []byte) error {
	if json.Unmarshal(text, &v.name) == nil {
		return nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return err
	}
	if len(object) != 1 {
		return fmt.Errorf("%s is not the name of a variant, nor an object of one", text)
	}
	for name, holds := range object {
		v.name, v.holds = name, holds
	}
	return nil
}

func (e *email) UnmarshalJSON(text []byte) error {
	var v variant
	if err := v.UnmarshalJSON(text); err != nil {
		return err
	}
	e.kind = v.name
	if v.name == contested {
		return json.Unmarshal(v.holds, &e.number)
	}
	return nil
}

// isChange says whether the operation asks for a change of a record.
func (o *operation) isChange() bool {
	return o.kind != look && o.kind != openAccount
}

// understand reads what the call and the outcome carry.
func (o *operation) understand() error {
	if err := o.understandCall(); err != nil {
		return err
	}
	o.outcome = o.Outcome.name
	var err error
	switch o.outcome {
	case shown:
		err = json.Unmarshal(o.Outcome.holds, &o.record)
	case at:
		told := struct {
			Version *int64 `json:"version"`
			Ended   *bool  `json:"ended"`
		}{&o.version, &o.ended}
		err = json.Unmarshal(o.Outcome.holds, &told)
	case done, ended, missing, taken, stale, account, notDone, unknown:
	default:
		err = fmt.Errorf("no outcome is called %q", o.outcome)
	}
	if err == nil && o.Returned < o.Invoked {
		err = errors.New("the operation returned before it was invoked")
	}
	return err
}

func (o *operation) understandCall() error {
	o.kind = o.Call.name
	switch o.kind {
	case register, put, patch, restrict, remove:
		if err := json.Unmarshal(o.Call.holds, &o.args); err != nil {
			return err
		}
		o.asksFor = o.args.Email
		if o.args.Part.name == partEmail {
			o.asksFor = new(email)
			return json.Unmarshal(o.args.Part.holds, o.asksFor)
		}
		return nil
	case look:
		var v variant
		if err := json.Unmarshal(o.Call.holds, &v); err != nil {
			return err
		}
		o.looksAt = v.name
		switch v.name {
		case searched:
			o.asksFor = new(email)
			return json.Unmarshal(v.holds, o.asksFor)
		case get, listed, history:
			return nil
		}
		return fmt.Errorf("no look is called %q", v.name)
	case openAccount:
		return nil
	}
	return fmt.Errorf("no operation is called %q", o.kind)
}

// lineMax bounds one line of a history, in bytes.
const lineMax = 64 * 1024

// version is a line that tells what the event table holds; that of a deletion has no record.
type version struct {
	Patient string  `json:"patient"`
	Version *int64  `json:"version"`
	Record  *record `json:"record"`
}

// runHistory is a history as a file holds it.
type runHistory struct {
	operations []*operation
	// tables holds the versions of each patient by the event table. If it is empty the table does not help the search.
	tables map[string][]version
}

func readHistory(path string) (*runHistory, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	h := &runHistory{tables: map[string][]version{}}
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, lineMax)
	for number := 1; lines.Scan(); number++ {
		if err := h.add(lines.Bytes()); err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
	}
	return h, lines.Err()
}

func (h *runHistory) add(line []byte) error {
	var v version
	if err := json.Unmarshal(line, &v); err == nil && v.Version != nil {
		h.tables[v.Patient] = append(h.tables[v.Patient], v)
		return nil
	}
	o := new(operation)
	if err := json.Unmarshal(line, o); err != nil {
		return err
	}
	h.operations = append(h.operations, o)
	return o.understand()
}

// effective leaves out the changes of unknown outcome that did not take effect by the event table.
func (h *runHistory) effective() []*operation {
	if len(h.tables) == 0 {
		return h.operations
	}
	made := map[uint64]bool{}
	for _, table := range h.tables {
		for _, v := range table {
			if v.Record != nil {
				made[v.Record.Name], made[v.Record.Address] = true, true
			}
		}
	}
	var effective []*operation
	for _, o := range h.operations {
		if o.outcome != unknown || o.args.Tag == 0 || made[o.args.Tag] {
			effective = append(effective, o)
		}
	}
	return effective
}

// window is a part of a history that is linearizable, or not, for itself.
type window struct {
	name       string
	operations []*operation
	rules      rules
}

// windows divides a history into the lives of its patients and the stories of its contested e-mail addresses.
func windows(h *runHistory) []window {
	operations := h.effective()
	lives := map[string][]*operation{}
	claimants := map[uint32]map[uint64]bool{}
	for _, o := range operations {
		if o.Patient != nil {
			// An account changes nothing of the record.
			told := lives[*o.Patient]
			if o.kind != openAccount {
				told = append(told, o)
			}
			lives[*o.Patient] = told
		}
		if o.isChange() && o.asksFor != nil && o.asksFor.kind == contested {
			number := o.asksFor.number
			if claimants[number] == nil {
				claimants[number] = map[uint64]bool{}
			}
			claimants[number][o.MadeBy] = true
		}
	}
	var all []window
	for id, life := range lives {
		all = append(all, window{"patient " + id, life, newLife(life, h.tables[id])})
	}
	for number, patients := range claimants {
		a := address{email{contested, number}}
		var told []*operation
		for _, o := range operations {
			if patients[o.MadeBy] && a.concerns(o) {
				told = append(told, o)
			}
		}
		all = append(all, window{fmt.Sprintf("address %d", number), told, a})
	}
	sort.Slice(all, func(i, j int) bool { return all[i].name < all[j].name })
	return all
}
