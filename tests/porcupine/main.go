// Command porcupine judges the histories of chaos runs with Porcupine: it is the second judge beside the checker in
// tests/chaos/checker.rs, and shares no code and no model with it.
//
// Each argument is a history: a file of JSON lines, one line for each operation, and, where the event table is to help
// the search, one for each version that the table holds. For each window of a history (the
// operations on one patient, or of all patients that asked for one contested e-mail address) the program prints one
// JSON line with the verdict:
//
//	linearizable  an order of the operations exists that explains every answer
//	violated      no such order exists
//	undecided     the search reached its limit of steps or of time
//
// One more line says whether every answer came in time ("answers": linearizable, or violated).
//
// The program exits with 0 if it judged everything, whatever the verdicts are, and with 1 if it could not read a
// history.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/anishathalye/porcupine"
)

const (
	// stepsMax bounds one search, and with it the memory: the cache of the search grows by at most one entry for
	// each step, and an entry of a window of a few hundred operations takes about 200 bytes.
	stepsMax = 2_000_000
	// searchTimeout bounds one search in time, for machines that are slow.
	searchTimeout = 60 * time.Second
)

// Verdicts.
const (
	linearizable = "linearizable"
	violated     = "violated"
	undecided    = "undecided"
)

type finding struct {
	File       string `json:"file"`
	Window     string `json:"window"`
	Operations int    `json:"operations"`
	Verdict    string `json:"verdict"`
}

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: porcupine HISTORY...")
		os.Exit(64)
	}
	out := json.NewEncoder(os.Stdout)
	for _, path := range os.Args[1:] {
		history, err := readHistory(path)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", path, err)
			os.Exit(1)
		}
		findings := []finding{{File: path, Window: "answers", Operations: len(history.operations), Verdict: promptness(history.operations)}}
		for _, w := range windows(history) {
			findings = append(findings, finding{path, w.name, len(w.operations), judge(w)})
		}
		for _, f := range findings {
			if err := out.Encode(f); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
}

// promptness says whether every operation ended by the moment at which it was due.
func promptness(operations []*operation) string {
	for _, o := range operations {
		if o.Returned > o.Due {
			return violated
		}
	}
	return linearizable
}

// judge searches one window for an order that explains it.
func judge(w window) string {
	rules := w.rules
	steps := 0
	model := porcupine.Model{
		Init: func() interface{} { return state{} },
		Step: func(before, input, _ interface{}) (bool, interface{}) {
			steps++
			if steps > stepsMax {
				return false, before
			}
			after, ok := step(rules, before.(state), input.(*operation))
			return ok, after
		},
		Hash: func(s interface{}) uint64 { return s.(state).hash() },
	}
	switch result := porcupine.CheckOperationsTimeout(model, timeline(w.operations), searchTimeout); {
	case result == porcupine.Ok:
		return linearizable
	case result == porcupine.Unknown || steps > stepsMax:
		return undecided
	default:
		return violated
	}
}

// step lets an operation take effect, if the answer to it is the one that the rules give in this state.
//
// Nobody knows what became of an operation of unknown outcome. Before the end of the run it may take effect, if that
// changes anything; after the end it never did. So each of them has exactly two fates, and the search tries no orders
// of operations without an effect.
func step(r rules, before state, o *operation) (state, bool) {
	switch {
	case o.kind == endOfRun:
		before.over = true
		return before, true
	case before.over:
		return before, o.outcome == unknown
	case o.outcome == unknown:
		after := r.effect(before, o)
		return after, after != before && r.possible(after, o)
	default:
		return r.explain(before, o)
	}
}

// timeline gives the operations their places in time. Operations of unknown outcome stay open until after the end of
// the run. Operations that say nothing are left out: those that were not done, and reads without an answer.
func timeline(operations []*operation) []porcupine.Operation {
	var last int64
	for _, o := range operations {
		if o.outcome != unknown && o.Returned > last {
			last = o.Returned
		}
		if o.Invoked > last {
			last = o.Invoked
		}
	}
	end := &operation{kind: endOfRun}
	line := []porcupine.Operation{{Input: end, Call: last + 1, Return: last + 1}}
	for _, o := range operations {
		returned := o.Returned
		if o.outcome == unknown {
			returned = last + 2
		}
		if o.outcome == notDone || (o.outcome == unknown && !o.isChange()) {
			continue
		}
		line = append(line, porcupine.Operation{ClientId: o.Client, Input: o, Call: o.Invoked, Return: returned})
	}
	return line
}
